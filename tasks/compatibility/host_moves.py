"""Ways out that change the host: its driver, cuda-compat, and how Docker gives GPUs to containers. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from packaging.version import Version

from tasks.compatibility.drivers import Drivers, is_wsl, tegra_row
from tasks.compatibility.models import Change
from tasks.compatibility.moves import (
    DRIVER,
    GONE,
    HOST_PACKAGE,
    OLDER_DRIVER,
    PIN,
    RELEASE,
    STEP,
    Move,
    Moves,
    between,
)
from tasks.compatibility.subject import drivers_of, native_cuda
from tasks.core.versions import major_minor

_TOOLKIT = "1.17.8"
"""Any version of NVIDIA's container toolkit: no rule distinguishes them."""

_OWN_LIBRARY: Mapping[str, Any] = {"forward_compat": False, "cuda_library": GONE}
"""Programs load the driver's own libcuda."""


class HostMoves(Moves):
    """Changes of the host."""

    def all(self) -> Iterator[Move]:
        """In any order."""
        yield from self._drivers()
        yield from self._forward_compatibility()
        yield from self._containers()

    def _drivers(self) -> Iterator[Move]:
        """Other drivers: the first version of each branch, and those at which a rule begins or ceases to apply, as
        far as the GPUs are driven; a Jetson has another JetPack instead."""
        if not self.facts.gpus:
            return
        own = drivers_of(self.facts, self.tables)
        if own.tegra:
            yield from self._jetpacks(own)
            return
        current = self.facts.driver
        bound = f", R{own.last} at most" if own.last is not None else ""
        versions = {str(row.branch) for row in self.tables.branches}
        versions |= {spec.version for spec in self.boundaries("driver") if spec.operator in ("<", ">=")}
        ordered = sorted(versions, key=Version)
        for version in ordered:
            facts = self.facts.model_copy(update={"driver": version, "cuda_driver": None})
            cuda = native_cuda(facts, self.tables)
            if cuda is None or (current is not None and Version(version) == Version(current)):
                continue
            newer = current is None or Version(version) > Version(current)
            price = (DRIVER if newer else OLDER_DRIVER) + STEP * between(ordered, version, current)
            wanted = f"{version} or newer{bound}" if newer else f"of the R{Version(version).major} branch"
            change = Change(what="driver", current=current, wanted=wanted)
            why = f"it supports CUDA {cuda}" if newer else "a branch that still drives this GPU"
            changes = (change, self._without_compat()) if self.facts.forward_compat else (change,)
            there = {"driver": version, "cuda_driver": cuda, **_OWN_LIBRARY}
            yield Move("driver", price, changes, there, why)

    def _jetpacks(self, own: Drivers) -> Iterator[Move]:
        """Later releases of JetPack for the board, with the driver and the glibc that each brings."""
        here = tegra_row(self.facts.driver, self.tables)
        later = [row for row in own.jetpacks() if here is None or Version(row.cuda) > Version(here.cuda)]
        for place, row in enumerate(later):
            change = Change(what="JetPack", current=here and here.jetpack, wanted=row.jetpack)
            facts = {"driver": row.driver, "cuda_driver": row.cuda, "glibc": row.glibc, **_OWN_LIBRARY}
            yield Move("driver", DRIVER + STEP * place, (change,), facts, f"it brings CUDA {row.cuda}")

    def _without_compat(self) -> Change:
        return Change(what="cuda-compat", current=self.facts.cuda_driver, wanted="off the library path")

    def _forward_compatibility(self) -> Iterator[Move]:
        """The driver's own library instead of cuda-compat; or the first cuda-compat with the packages' CUDA."""
        facts = self.facts
        if not facts.gpus or facts.driver is None:
            return
        if facts.forward_compat:
            native = native_cuda(facts, self.tables)
            why = f"the driver itself supports CUDA {native}" if native else "the driver has its own library"
            there = {"cuda_driver": native, **_OWN_LIBRARY}
            yield Move("cuda-compat", PIN, (self._without_compat(),), there, why)
        build = major_minor(facts.cuda_build) if facts.cuda_build else None
        row = next((row for row in self.tables.compat if build and Version(row.cuda) >= Version(build)), None)
        if row is not None and not is_wsl(facts):
            change = Change(
                what="cuda-compat",
                current=facts.cuda_driver if facts.forward_compat else None,
                wanted=f"{row.cuda}, installed and on the library path",
            )
            why = f"its user-mode driver runs newer CUDA on driver {facts.driver}"
            there = {"forward_compat": True, "cuda_driver": row.cuda, "cuda_library": GONE}
            yield Move("cuda-compat", HOST_PACKAGE, (change,), there, why)

    def _containers(self) -> Iterator[Move]:
        """If Docker cannot pass GPUs to containers: make it able to, or serve as a process."""
        facts = self.facts
        if facts.image_requires:
            disabled = Change(what="NVIDIA_DISABLE_REQUIRE", current=None, wanted="true, in the container")
            why = "CUDA itself runs on this driver"
            yield Move("image", PIN, (disabled,), {"image_requires": ()}, why)
        if (
            (facts.target or "").lower() != "docker"
            or not facts.known("container_gpus")
            or facts.container_gpus
        ):
            return
        process = Change(what="target", current=facts.target, wanted="process")
        why = "a process sees the GPUs without a container toolkit"
        yield Move("target", RELEASE, (process,), {"target": "process"}, why)
        change = Change(
            what="container toolkit",
            current=facts.container_toolkit,
            wanted="installed, and configured for Docker",
        )
        there = {
            "container_toolkit": facts.container_toolkit or _TOOLKIT,
            "container_gpus": ("nvidia-runtime",),
        }
        why = "Docker then passes GPUs to containers"
        yield Move("container toolkit", HOST_PACKAGE, (change,), there, why)
