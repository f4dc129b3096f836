"""What a host's kernel driver supports, how far it can be upgraded, and what loaded cuda-compat adds to it. Pure."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from packaging.version import Version

from tasks.compatibility.rules import CompatRow, Tables, TegraRow, load_tables
from tasks.core.facts import Facts, Gpu
from tasks.core.versions import major_minor

_OWN_SERIES_ONLY = 540
"""Tegra's numbers below the branches of other GPUs, and this one, are of no other GPU's driver."""
_FIRST_BRANCH = 100
_LEADING_VERSION = re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,6}){1,3}")


def is_tegra(facts: Facts, capabilities: Sequence[str | None], tables: Tables) -> bool:
    """Whether the driver's number is of Tegra's series: by the GPUs, else by the number or the kernel's name."""
    own = {capability for row in tables.tegra for capability in row.capabilities}
    known = [capability for capability in capabilities if capability is not None]
    if known:
        return bool(own.intersection(known))
    if facts.driver is not None and facts.known("driver"):
        major = Version(facts.driver).major
        if major < _FIRST_BRANCH or major == _OWN_SERIES_ONLY:
            return any(Version(row.driver).major == major for row in tables.tegra)
    return "tegra" in (facts.kernel or "")


def is_wsl(facts: Facts) -> bool:
    """Whether the driver is that of Windows, seen from WSL."""
    return "microsoft" in (facts.kernel or "").lower()


def wsl_kernel(facts: Facts) -> str | None:
    """The version of WSL's kernel; None elsewhere."""
    match = _LEADING_VERSION.match(facts.kernel or "")
    return match[0] if match and is_wsl(facts) else None


def tegra_row(driver: str | None, tables: Tables) -> TegraRow | None:
    """The row of a driver of Tegra's series; None if the table does not list it."""
    if driver is None:
        return None
    version = Version(driver)
    found = [
        row
        for row in tables.tegra
        if Version(row.driver) <= version and Version(row.driver).major == version.major
    ]
    return found[-1] if found else None


@dataclass(frozen=True)
class Drivers:
    """What may be said about another driver for this host.

    `capabilities` are those of its GPUs, as far as they are known. `last` is the newest branch that drives all of
    them, None if current ones do.
    """

    facts: Facts
    tables: Tables
    capabilities: tuple[str | None, ...] = ()
    tegra: bool = False
    virtual: bool = False

    @functools.cached_property
    def _bound(self) -> tuple[int | None, Gpu | None]:
        last = {row.cc: row.last_branch for row in self.tables.capabilities}
        bounds = [
            (branch, gpu)
            for gpu, capability in zip(self.facts.gpus, self.capabilities, strict=False)
            if (branch := last.get(capability or "")) is not None
        ]
        return min(bounds, key=lambda bound: bound[0]) if bounds else (None, None)

    @property
    def last(self) -> int | None:
        """The newest driver branch that still drives every GPU."""
        return self._bound[0]

    def upgrade(self, wanted: str) -> str:
        """How to get a driver of at least `wanted`, or why there is none: `upgrade the driver to 580 or newer`."""
        if self.tegra:
            return self._jetpack(self._cuda_of(wanted))
        last, gpu = self._bound
        if last is not None and gpu is not None and Version(wanted).major > last:
            return f"driver {wanted} does not drive {gpu.name} (R{last} is the last branch that does)"
        if is_wsl(self.facts):
            return f"upgrade the NVIDIA driver of Windows to {wanted} or newer"
        bound = f", R{last} at most" if last is not None else ""
        if self.virtual:
            return f"have the hypervisor's vGPU manager and the guest driver upgraded to {wanted} or newer{bound}"
        return f"upgrade the driver to {wanted} or newer{bound}"

    def upgrade_to_cuda(self, cuda: str) -> str:
        """How to get a driver that supports this CUDA natively."""
        if self.tegra:
            return self._jetpack(cuda)
        branch = next(
            (row.branch for row in self.tables.branches if Version(row.cuda) >= Version(cuda)), None
        )
        return self.upgrade(str(branch)) if branch else f"upgrade the driver to one of CUDA {cuda}"

    def builds(self) -> str | None:
        """The newest CUDA whose builds run on this driver, by minor-version compatibility if there is one."""
        native = native_cuda(self.facts, self.tables, self.tegra)
        if native is None:
            return None
        if self.tegra or self.facts.driver is None:
            return native
        driver, newest = Version(self.facts.driver), native
        for row in self.tables.branches:
            if row.major_from is not None and driver >= Version(row.major_from):
                same = [other.cuda for other in self.tables.branches if same_major(other.cuda, row.cuda)]
                newest = max(newest, same[-1], key=Version)
        return newest

    def _cuda_of(self, driver: str) -> str:
        """CUDA of a branch's first driver, as a build of its major version would need it."""
        found = [row.cuda for row in self.tables.branches if row.branch <= Version(driver).major]
        return found[-1] if found else self.tables.branches[0].cuda

    def _jetpack(self, cuda: str) -> str:
        row = next((row for row in self.jetpacks() if Version(row.cuda) >= Version(cuda)), None)
        if row is not None:
            return f"upgrade to JetPack {row.jetpack} (CUDA {row.cuda}), or use a container made for this JetPack"
        return f"no JetPack for this board supports CUDA {cuda}: use packages or a container made for its JetPack"

    def jetpacks(self) -> list[TegraRow]:
        """The last release of JetPack with each CUDA, for every GPU of this host, oldest first."""
        own = {capability for capability in self.capabilities if capability}
        rows = [row for row in self.tables.tegra if own and own <= set(row.capabilities)]
        newest = {row.cuda: row for row in rows}
        return sorted(newest.values(), key=lambda row: Version(row.cuda))


def same_major(one: str, other: str) -> bool:
    """Whether both are of one major version."""
    return Version(one).major == Version(other).major


def native_cuda(facts: Facts, tables: Tables, tegra: bool = False) -> str | None:
    """The newest CUDA that the kernel driver supports without any compatibility layer.

    Taken from the driver's branch, because NVML and nvidia-smi report the CUDA of cuda-compat if that is on the
    library path. A driver newer than the table supports at least what it reports itself. Tegra has a table of its
    own; a driver of which it has no row supports what it reports.
    """
    if facts.driver is None:
        return None
    reported = facts.cuda_driver and major_minor(facts.cuda_driver)
    if tegra:
        row = tegra_row(facts.driver, tables)
        return row.cuda if row else reported if not facts.forward_compat else None
    release = Version(facts.driver).major
    found = [row for row in tables.branches if row.branch <= release]
    if not found:
        return None
    cuda = found[-1].cuda
    newer_than_table = found[-1] == tables.branches[-1] and release > found[-1].branch
    if newer_than_table and reported is not None:
        return max(cuda, reported, key=Version)
    return cuda


def compat_fit(
    facts: Facts, native: str | None, offered: str | None, tables: Tables, tegra: bool
) -> str | None:
    """How the loaded cuda-compat fits the kernel driver; None if that cannot be said.

    `older`: not newer than the kernel driver's own library; `same`: the driver's very own. If newer: `listed` or
    `unlisted`, as NVIDIA lists the driver's branch for it or not, or `no-row` without a row in the table.
    """
    if facts.driver is None:
        return None
    if facts.cuda_library is not None and not tegra:
        library, driver = Version(facts.cuda_library), Version(facts.driver)
        if library <= driver:
            return "same" if library == driver else "older"
    elif offered is None or native is None:
        return None
    elif Version(offered) <= Version(native):
        return "older"
    if tegra:
        known = tegra_row(facts.driver, tables)
        if known is None or known.compat_cuda is None:
            return "no-row"
        return "listed" if offered and Version(offered) <= Version(known.compat_cuda) else "unlisted"
    row = compat_row(offered, tables)
    if row is None:
        return "no-row"
    return (
        "listed" if Version(facts.driver).major in (*row.drivers, branch_of(offered, tables)) else "unlisted"
    )


def compat_row(cuda: str | None, tables: Tables | None = None) -> CompatRow | None:
    """The cuda-compat package of that CUDA."""
    rows = (tables or load_tables()).compat
    return next((row for row in rows if cuda is not None and row.cuda == major_minor(cuda)), None)


def branch_of(cuda: str | None, tables: Tables) -> int | None:
    """The driver branch whose library cuda-compat of that CUDA is."""
    if cuda is None:
        return None
    return next(
        (row.branch for row in tables.branches if Version(row.cuda) == Version(major_minor(cuda))), None
    )
