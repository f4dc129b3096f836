"""What fits what: each listed release of an engine with each CUDA of its torch, and the hosts that pass. Pure.

Every cell comes from judging hosts by the rules. There is no second copy of them here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from packaging.version import Version

from tasks.compatibility.builds import TORCH, Wheel, build_row, torch_release
from tasks.compatibility.conditions import GPU, any_holds, evaluate
from tasks.compatibility.drivers import is_tegra
from tasks.compatibility.engines import find_engine
from tasks.compatibility.kernels import cuda_builds, platform_of
from tasks.compatibility.models import PASSES, Matrix, MatrixRow, Survey
from tasks.compatibility.plan import judge
from tasks.compatibility.rules import CapabilityRow, ReleaseRow, Rule, Tables, load_tables
from tasks.compatibility.subject import describe
from tasks.core.errors import WrongUseError
from tasks.core.facts import Facts, Gpu
from tasks.core.verdicts import CompatibilityVerdict
from tasks.core.versions import satisfying

_ANY_GPU = "GPU"
_COMPUTES_WITH_TORCH = "transformers"
"""Stands for any engine, where a release of torch itself is asked about."""
_NOT_ON_THE_GPU = frozenset({"ENG-FLOOR-PROCESSOR"})
"""Warnings of an engine that serves beside the GPU: the matrix is about those that it serves on."""
_ANY_OLDER_GLIBC = "2.0"

_HOST: Mapping[str, Any] = {"forward_compat": False, "cpu": "x86_64"}
"""What all judged hosts share: wheels for Arm contain kernels for other GPUs."""


def matrix_of(engine: str, here: Facts | None = None, tables: Tables | None = None) -> Matrix:
    """A row for each release and each CUDA of the torch that it pins, with the build of the release that goes with
    it; the newest first. With `here`, whether the row runs there.

    Raises `WrongUseError` for an engine without listed releases.
    """
    tables = tables or load_tables()
    listed = find_engine(engine, tables)
    name = listed.name if listed else engine.lower()
    releases = [release for release in tables.releases if release.package == name]
    if not releases:
        names = sorted({release.package for release in tables.releases})
        raise WrongUseError(
            f"the tables list no releases of {engine[:80]!r}", fix=f"use one of {', '.join(names)}"
        )
    rows = (
        _row(release, cuda, here, tables) for release in reversed(releases) for cuda in _cuda(release, tables)
    )
    return Matrix(engine=name, rows=tuple(row for row in rows if row is not None))


def capabilities_of_cards(tables: Tables) -> tuple[CapabilityRow, ...]:
    """Those of GPUs that hosts with x86-64 may have: not of a Jetson's own."""
    return tuple(row for row in tables.capabilities if not is_tegra(Facts(), (row.cc,), tables))


def _row(release: ReleaseRow, cuda: str | None, here: Facts | None, tables: Tables) -> MatrixRow | None:
    """With the first build of the engine that goes with this CUDA."""
    stacks = (_Stack.of(release, version, cuda, tables) for version in _wheels(release, tables))
    return next((row for stack in stacks if (row := stack.row(here)) is not None), None)


def _wheels(release: ReleaseRow, tables: Tables) -> tuple[str, ...]:
    """The version on the index, and those of the engine's builds for another CUDA (`0.31.0+cu129`)."""
    row = build_row(release.package, release.version, tables)
    others = [Wheel(release.version, cuda, row).local for cuda in row.others] if row else []
    return (release.version, *others)


def _cuda(release: ReleaseRow, tables: Tables) -> tuple[str | None, ...]:
    """The CUDA versions that the release, or the torch that it pins, is offered for."""
    pinned = release.version if release.package == TORCH else release.torch
    torch = torch_release(pinned, tables) if pinned else None
    offered = cuda_builds(tables, torch, platform_of(Facts.model_validate(_HOST))) if torch else release.cuda
    return offered or (None,)


@dataclass(frozen=True)
class _Stack:
    """A release in one build with torch for one CUDA, on any host. `blocking` are the tables with the rules that can
    say no to it; `refused` if one does on every host."""

    release: ReleaseRow
    version: str
    facts: Facts
    tables: Tables
    blocking: Tables
    refused: bool

    @classmethod
    def of(cls, release: ReleaseRow, version: str, cuda: str | None, tables: Tables) -> _Stack:
        """Rules about other stacks are left out: what is known to be false stays so on every host."""
        facts = Facts.model_validate({**_software(release, version, cuda), **_HOST})
        subject = describe(Survey(facts=facts), tables)
        rules = [
            rule
            for rule in map(_about_the_gpu, tables.rules)
            if rule.severity in ("block", "unknown")
            and evaluate(rule.when, subject).holds is not False
            and not any_holds(rule.unless, subject)
        ]
        refused = any(not rule.unless and evaluate(rule.when, subject).holds for rule in rules)
        blocking = tables.model_copy(update={"rules": tuple(rules)})
        return cls(release, version, facts, tables, blocking, refused)

    def row(self, here: Facts | None) -> MatrixRow | None:
        """What it needs; None if no GPU runs it, because the engine's build and torch's do not go together."""
        if self.refused:
            return None
        lowest = self._lowest_drivers()
        if not lowest:
            return None
        capability = min(lowest, key=lambda cc: Version(lowest[cc]))
        return MatrixRow(
            release=self.version,
            torch=self.release.torch,
            cuda=self.facts.cuda_build,
            driver=lowest[capability],
            gpus=tuple(lowest),
            glibc=self._lowest_glibc(capability, lowest[capability]),
            python=self._python(),
            transformers=self.release.transformers,
            here=None if here is None else self._verdict_on(here),
        )

    def _lowest_drivers(self) -> dict[str, str]:
        """The first driver for each compute capability that some driver runs.

        Rules that do not ask for the GPU, and those that do not ask for the driver, are judged once for all.
        """
        every = [row.cc for row in capabilities_of_cards(self.tables)]
        drivers = sorted(_drivers(self.blocking), key=Version)
        of_driver = self._only(lambda field: not field.startswith(GPU))
        drivers = [driver for driver in drivers if of_driver._runs(every[-1], driver)]
        of_gpu = self._only(lambda field: "driver" not in field)
        served = [cc for cc in every if drivers and of_gpu._runs(cc, drivers[-1])]
        found = {cc: next((one for one in drivers if self._runs(cc, one)), None) for cc in served}
        return {cc: driver for cc, driver in found.items() if driver is not None}

    def _only(self, wanted: Callable[[str], bool]) -> _Stack:
        """With the rules that ask for such fields alone."""
        rules = tuple(rule for rule in self.blocking.rules if all(map(wanted, _fields(rule))))
        return replace(self, blocking=self.blocking.model_copy(update={"rules": rules}))

    def _lowest_glibc(self, capability: str, driver: str) -> str | None:
        """None if any will do, as far as the tables know."""
        if self._runs(capability, driver, glibc=_ANY_OLDER_GLIBC):
            return None
        versions = sorted({row.glibc for row in self.tables.glibc}, key=Version)
        return next((one for one in versions if self._runs(capability, driver, glibc=one)), None)

    def _runs(self, capability: str, driver: str, **more: str) -> bool:
        gpu = Gpu(name=_ANY_GPU, compute_capability=capability)
        facts = self.facts.model_copy(update={"driver": driver, "gpus": (gpu,), **more})
        return judge(Survey(facts=facts), tables=self.blocking).verdict in PASSES

    def _verdict_on(self, here: Facts) -> CompatibilityVerdict:
        survey = Survey(facts=Facts.model_validate({**here.model_dump(), **_known(self.facts)}))
        return judge(survey, tables=self.tables).verdict

    def _python(self) -> str | None:
        key = (self.release.package, self.release.version)
        return next((row.python for row in self.tables.pythons if (row.package, row.version) == key), None)


def _about_the_gpu(rule: Rule) -> Rule:
    return rule.model_copy(update={"severity": "block"}) if rule.id in _NOT_ON_THE_GPU else rule


def _fields(rule: Rule) -> Iterator[str]:
    """What a rule asks for, fields to compare with included."""
    for condition in (rule.when, rule.unless):
        for field, wanted in condition.items():
            yield field
            yield str(wanted).partition("@")[2]


def _known(facts: Facts) -> dict[str, Any]:
    return {name: value for name, value in facts.model_dump().items() if name not in _HOST}


def _software(release: ReleaseRow, own: str, cuda: str | None) -> dict[str, Any]:
    packages = {release.package: own}
    if release.torch:
        packages[TORCH] = release.torch
    for package, wanted in (("transformers", release.transformers), ("numpy", release.numpy)):
        if wanted and (version := satisfying(wanted)):
            packages[package] = version
    known: dict[str, Any] = {"packages": packages, "cuda_build": cuda}
    if release.package == TORCH:
        return {**known, "engine": _COMPUTES_WITH_TORCH}
    return {**known, "engine": release.package, "engine_version": own}


def _drivers(tables: Tables) -> set[str]:
    """Where the answer may change: the first driver of each branch, and the versions that rules name."""
    return {str(row.branch) for row in tables.branches} | _boundaries(tables, "driver")


def _boundaries(tables: Tables, field: str) -> set[str]:
    wanted = (rule.when.get(field) for rule in tables.rules)
    return {version for text in wanted if isinstance(text, str) for version in _lower_bounds(text)}


def _lower_bounds(comparisons: str) -> Iterator[str]:
    for part in comparisons.split(","):
        version = part.strip().lstrip("<>=!~")
        if version[:1].isdigit():
            yield version.removesuffix(".*")
