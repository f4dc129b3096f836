"""The way out of a block: the smallest change of driver, packages or weights that passes the tables. Pure.

Candidates come from the tables alone: releases with their pins, driver branches, and the versions at which rules
begin or cease to apply. Each is judged like any host before it is proposed. GPUs and model family stay.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from packaging.specifiers import Specifier, SpecifierSet
from packaging.version import Version

from tasks.compatibility.conditions import PACKAGE, PRESENCE, Wanted, contains
from tasks.compatibility.kernels import builds, index_name, platform_of
from tasks.compatibility.models import Change, CompatibilityResult, Measurement, Survey, WayOut
from tasks.compatibility.plan import judge
from tasks.compatibility.rules import ReleaseRow, Tables, load_tables
from tasks.compatibility.subject import find_engine, major_minor, native_cuda
from tasks.core.facts import Facts
from tasks.core.verdicts import CompatibilityVerdict
from tasks.core.versions import same_minor, satisfying

PASSES = (CompatibilityVerdict.PASS, CompatibilityVerdict.WARN)
MOST = 3
"""Most ways out that are listed."""

_MEASURED = "P0"
_TRIES = 400
"""Most combinations that are judged, with this engine and with others: a few tenths of a second."""

# What a change costs the user, cheapest first: another index or pin, another release, a package for the whole host,
# a reboot, another engine with everything that depends on it.
_PIN, _RELEASE, _HOST_PACKAGE, _DRIVER, _OLDER_DRIVER, _ENGINE = 1.0, 2.0, 3.0, 4.0, 5.0, 8.0
_STEP = 0.02
"""Added for each version in between: of two that pass, the nearer one wins."""

_FLOATS = ("bfloat16", "float16")
_EVERYWHERE = "llama.cpp"
_TOOLKIT = "1.17.8"
"""Any version of NVIDIA's container toolkit: no rule distinguishes them."""


class _Gone:
    """A fact that is no longer known after a move."""


_GONE = _Gone()


@dataclass(frozen=True)
class Move:
    """One change: its price, its description, and what it does to the facts. Of each `side`, one move is chosen."""

    side: str
    price: float
    changes: tuple[Change, ...]
    facts: Mapping[str, Any]

    def apply(self, facts: Facts) -> Facts:
        """The facts after it. Packages are merged; a package that is None is removed."""
        known = {**facts.model_dump(), **self.facts}
        if "packages" in self.facts:
            packages = {**facts.packages, **self.facts["packages"]}
            known["packages"] = {name: version for name, version in packages.items() if version is not None}
        return Facts.model_validate({name: value for name, value in known.items() if value is not _GONE})


def advise(
    survey: Survey, measurements: Sequence[Measurement] = (), tables: Tables | None = None
) -> CompatibilityResult:
    """The judgement of a host and what is to run there; a block comes with the nearest ways out."""
    tables = tables or load_tables()
    result = judge(survey, measurements, tables)
    return result.model_copy(update={"ways_out": ways_out(result, survey, tables)})


def ways_out(result: CompatibilityResult, survey: Survey, tables: Tables) -> tuple[WayOut, ...]:
    """The nearest changes that make the host pass, at most one of each kind.

    None if the host is not blocked, or if a measurement on it blocks."""
    blocks = [finding for finding in result.findings if finding.severity == "block"]
    if not blocks or any(finding.precedence == _MEASURED for finding in blocks):
        return ()
    # Without sightings: sources may disagree about facts that the moves change.
    return _Search(survey.model_copy(update={"sightings": ()}), tables).run()


class _Search:
    """Looks for combinations of moves that pass."""

    def __init__(self, survey: Survey, tables: Tables) -> None:
        self._survey = survey
        self._tables = tables
        rules = tuple(rule for rule in tables.rules if rule.severity in ("block", "unknown"))
        self._blocking = tables.model_copy(update={"rules": rules})

    def run(self) -> tuple[WayOut, ...]:
        """Single moves first; if none helps, two, then three together; another engine last."""
        candidates = _Candidates(self._survey.facts, self._tables, self._blocking)
        return self._nearest(candidates.of_this_engine()) or self._nearest(candidates.of_other_engines())

    def _nearest(self, sides: Mapping[str, Sequence[Move]]) -> tuple[WayOut, ...]:
        tries = iter(range(_TRIES))
        for together in (1, 2, 3):
            found: list[tuple[float, WayOut]] = []
            for names in combinations(sides, together):
                best = self._best([sides[name] for name in names], tries)
                if best is not None:
                    found.append(best)
            if found:
                found.sort(key=lambda way: (way[0], [change.what for change in way[1].changes]))
                return tuple(way for _, way in found[:MOST])
        return ()

    def _best(self, sides: Sequence[Sequence[Move]], tries: Iterator[int]) -> tuple[float, WayOut] | None:
        """The cheapest choice of one move from each side that passes, within the tries that are left."""
        for (price, moves), _ in zip(_by_price(sides), tries, strict=False):
            facts = self._survey.facts
            for move in moves:
                facts = move.apply(facts)
            survey = self._survey.model_copy(update={"facts": facts})
            if judge(survey, tables=self._blocking).verdict is not CompatibilityVerdict.PASS:
                continue
            verdict = judge(survey, tables=self._tables).verdict
            if verdict in PASSES:
                changes = tuple(change for move in moves for change in move.changes)
                return price, WayOut(changes=changes, verdict=verdict)
        return None


@dataclass(frozen=True)
class _Candidates:
    """What could be changed about one host and stack. `blocking` are the tables with only the rules that block."""

    facts: Facts
    tables: Tables
    blocking: Tables

    def of_this_engine(self) -> dict[str, list[Move]]:
        """Moves by side, the cheapest first."""
        return _by_side(
            [
                *self._drivers(),
                *self._forward_compatibility(),
                *self._containers(),
                *self._software(),
                *self._pins(),
                *self._weights(),
            ]
        )

    def of_other_engines(self) -> dict[str, list[Move]]:
        """Listed releases of other engines, and the engine that serves everywhere, on the CPU."""
        row = find_engine(self.facts.engine, self.tables)
        if row is None:
            return {}
        moves: list[Move] = []
        gone: dict[str, str | None] = dict.fromkeys(self.facts.packages)
        listed = [
            release for release in self.tables.releases if release.torch and release.package != row.name
        ]
        for place, release in enumerate(reversed(listed)):
            pinned = self._torch(release)
            cuda = self._default_build(pinned)
            if pinned is None or cuda is None or not self.facts.gpus:
                continue
            change = Change(what="engine", current=row.name, wanted=f"{release.package} {release.version}")
            facts: dict[str, Any] = {
                "engine": release.package,
                "engine_version": release.version,
                "packages": {**gone, release.package: release.version, "torch": pinned.version},
                "cuda_build": cuda,
            }
            moves.append(Move("engine", _ENGINE + _STEP * place, (change,), facts))
        if row.name != _EVERYWHERE:
            change = Change(what="engine", current=row.name, wanted=f"{_EVERYWHERE} on the CPU")
            facts = {"engine": _EVERYWHERE, "engine_version": _GONE, "packages": gone}
            moves.append(
                Move("processor", 2 * _ENGINE, (change,), {**facts, "cuda_build": None, "dtype": _GONE})
            )
        return _by_side(moves)

    def _drivers(self) -> Iterator[Move]:
        """Other drivers: the first version of each branch, and those at which a rule begins or ceases to apply."""
        if not self.facts.gpus:
            return
        current = self.facts.driver
        versions = {str(row.branch) for row in self.tables.branches}
        versions |= {spec.version for spec in self._boundaries("driver") if spec.operator in ("<", ">=")}
        ordered = sorted(versions, key=Version)
        for version in ordered:
            facts = self.facts.model_copy(update={"driver": version, "cuda_driver": None})
            cuda = native_cuda(facts, self.tables)
            if cuda is None or (current is not None and Version(version) == Version(current)):
                continue
            newer = current is None or Version(version) > Version(current)
            price = (_DRIVER if newer else _OLDER_DRIVER) + _STEP * _steps(ordered, version, current)
            wanted = f"{version} or newer" if newer else f"of the R{Version(version).major} branch"
            change = Change(what="driver", current=current, wanted=wanted)
            yield Move("driver", price, (change,), {"driver": version, "cuda_driver": cuda})

    def _forward_compatibility(self) -> Iterator[Move]:
        if not self.facts.forward_compat and self.facts.gpus and self.facts.driver is not None:
            change = Change(what="cuda-compat", current=None, wanted="installed, and on the library path")
            yield Move("cuda-compat", _HOST_PACKAGE, (change,), {"forward_compat": True})

    def _containers(self) -> Iterator[Move]:
        """If Docker cannot pass GPUs to containers: make it able to, or serve as a process."""
        facts = self.facts
        if (
            (facts.target or "").lower() != "docker"
            or not facts.known("container_gpus")
            or facts.container_gpus
        ):
            return
        process = Change(what="target", current=facts.target, wanted="process")
        yield Move("target", _RELEASE, (process,), {"target": "process"})
        change = Change(
            what="container toolkit",
            current=facts.container_toolkit,
            wanted="installed, and configured for Docker",
        )
        there = {
            "container_toolkit": facts.container_toolkit or _TOOLKIT,
            "container_gpus": ("nvidia-runtime",),
        }
        yield Move("container toolkit", _HOST_PACKAGE, (change,), there)

    def _software(self) -> Iterator[Move]:
        """Another release of the engine, with what it pins; of torch if no engine pins it; else another build."""
        row = find_engine(self.facts.engine, self.tables)
        own = self._releases(row.name) if row else []
        if row and own:
            current = self.facts.engine_version or self.facts.packages.get(row.name)
            yield from (self._release(release, current, own) for release in own if release.version != current)
            yield from self._missing_build(own, current)
        elif "torch" in self.facts.packages:
            yield from self._torch_builds(self.facts.packages["torch"])
        elif self.facts.cuda_build:
            yield from self._builds(self.facts.cuda_build)

    def _releases(self, package: str) -> list[ReleaseRow]:
        return [row for row in self.tables.releases if row.package == package]

    def _torch(self, release: ReleaseRow) -> ReleaseRow | None:
        """The release of torch that an engine pins."""
        pin = release.torch
        return next((row for row in self._releases("torch") if pin and same_minor(row.version, pin)), None)

    def _default_build(self, torch: ReleaseRow | None) -> str | None:
        """The CUDA build of a release of torch that this platform gets first."""
        return next(iter(builds(self.tables, torch, platform_of(self.facts))), None) if torch else None

    def _with_triton(self, torch: ReleaseRow) -> dict[str, str | None]:
        """The Triton that comes with a release of torch, where there is one among the packages."""
        return {name: torch.triton for name in self.facts.packages.keys() & {"triton"} if torch.triton}

    def _release(self, release: ReleaseRow, current: str | None, own: Sequence[ReleaseRow]) -> Move:
        packages: dict[str, str | None] = {release.package: release.version}
        facts: dict[str, Any] = {"engine_version": release.version, "packages": packages}
        changes = [Change(what=release.package, current=current, wanted=release.version)]
        pinned = self._torch(release)
        if release.torch and pinned:
            packages |= {"torch": release.torch, **self._with_triton(pinned)}
            if self.facts.cuda_build:
                facts["cuda_build"] = self._default_build(pinned)
            here = self.facts.packages.get("torch")
            if here != release.torch:
                changes.append(Change(what="torch", current=here, wanted=release.torch))
        for package, wanted in (("transformers", release.transformers), ("numpy", release.numpy)):
            here = self.facts.packages.get(package)
            if wanted and here and not contains(wanted, here):
                packages[package] = _within(wanted)
                changes.append(Change(what=package, current=here, wanted=wanted))
        steps = _steps([row.version for row in own], release.version, current)
        return Move("software", _RELEASE + _STEP * steps, tuple(changes), facts)

    def _missing_build(self, own: Sequence[ReleaseRow], current: str | None) -> Iterator[Move]:
        """The CUDA build of the release at hand, where there are GPUs and no CUDA build."""
        known = [row for row in own if current is None or Version(row.version) <= Version(current)] or own
        pinned = self._torch(known[-1])
        cuda = self._default_build(pinned)
        if pinned and cuda and self.facts.gpus and self.facts.cuda_build is None:
            change = Change(what="cuda_build", current=None, wanted=cuda)
            facts = {"cuda_build": cuda, "packages": {"torch": pinned.version}}
            yield Move("software", _PIN, (change,), facts)

    def _torch_builds(self, current: str) -> Iterator[Move]:
        releases = self._releases("torch")
        public = Version(current).public
        for release in releases:
            same = same_minor(release.version, public)
            version = public if same else release.version
            steps = _steps([row.version for row in releases], release.version, public)
            for cuda in builds(self.tables, release, platform_of(self.facts)):
                if same and cuda == self.facts.cuda_build:
                    continue
                change = Change(what="torch", current=current, wanted=f"{version}+{index_name(cuda)}")
                packages = {"torch": version, **self._with_triton(release)}
                facts = {"packages": packages, "cuda_build": cuda}
                yield Move("software", (_PIN if same else _RELEASE) + _STEP * steps, (change,), facts)

    def _builds(self, current: str) -> Iterator[Move]:
        """A build of the same engine for another CUDA."""
        versions = sorted({row.cuda for row in self.tables.branches}, key=Version)
        for cuda in versions:
            if cuda != major_minor(current):
                change = Change(what="cuda_build", current=current, wanted=cuda)
                price = _PIN + _STEP * _steps(versions, cuda, current)
                yield Move("software", price, (change,), {"cuda_build": cuda})

    def _pins(self) -> Iterator[Move]:
        """Other versions of the remaining packages, at the boundaries that rules draw; or none."""
        for package, current in sorted(self.facts.packages.items()):
            if package in ("torch", self.facts.engine):
                continue
            newest = next((row.version for row in self.tables.newest if row.package == package), None)
            wanted_versions = [
                (wanted, _within(wanted))
                for spec in sorted(self._boundaries(f"{PACKAGE}{package}"), key=str)
                for wanted in _beyond(spec)
                if not contains(wanted, current)
            ]
            for wanted, version in wanted_versions:
                if newest is None or Version(version) <= Version(newest):
                    change = Change(what=package, current=current, wanted=wanted)
                    price = _PIN + _STEP * abs(Version(version).major - Version(current).major)
                    yield Move(package, price, (change,), {"packages": {package: version}})
            if any(rule.when.get(f"{PACKAGE}{package}") == PRESENCE[1] for rule in self.blocking.rules):
                change = Change(what=package, current=current, wanted="removed")
                yield Move(package, _PIN, (change,), {"packages": {package: None}})

    def _weights(self) -> Iterator[Move]:
        for dtype in _FLOATS if self.facts.dtype else ():
            if dtype != self.facts.dtype:
                change = Change(what="dtype", current=self.facts.dtype, wanted=dtype)
                yield Move("dtype", _PIN, (change,), {"dtype": dtype})

    def _boundaries(self, field: str) -> set[Specifier]:
        """Comparisons that blocking rules make with a field."""
        conditions = (part for rule in self.blocking.rules for part in (rule.when, rule.unless))
        return {spec for condition in conditions for spec in _comparisons(condition.get(field))}


def _by_side(moves: Iterable[Move]) -> dict[str, list[Move]]:
    found: dict[str, list[Move]] = {}
    for move in sorted(moves, key=lambda move: move.price):
        found.setdefault(move.side, []).append(move)
    return found


def _by_price(sides: Sequence[Sequence[Move]]) -> Iterator[tuple[float, tuple[Move, ...]]]:
    """Choices of one move from each side (each sorted by price), the cheapest first."""
    first = (0,) * len(sides)
    waiting = [(sum(side[0].price for side in sides), first)]
    seen = {first}
    while waiting:
        price, places = heapq.heappop(waiting)
        yield price, tuple(side[place] for side, place in zip(sides, places, strict=True))
        for index, side in enumerate(sides):
            after = (*places[:index], places[index] + 1, *places[index + 1 :])
            if after[index] < len(side) and after not in seen:
                seen.add(after)
                more = side[after[index]].price - side[places[index]].price
                heapq.heappush(waiting, (price + more, after))


def _comparisons(wanted: Wanted | None) -> Iterable[Specifier]:
    if not isinstance(wanted, str) or wanted in PRESENCE or "@" in wanted:
        return ()
    return SpecifierSet(wanted)


def _steps(versions: Iterable[str], one: str, other: str | None) -> int:
    """How many of `versions` lie in between; from nothing, any version is the first."""
    if other is None:
        return 0
    low, high = sorted((Version(one), Version(Version(other).public)))
    return sum(low < Version(version) <= high for version in versions)


def _beyond(spec: Specifier) -> Iterator[str]:
    """Comparisons that hold exactly where `spec` does not."""
    opposite = {"<": ">=", ">=": "<", "<=": ">", ">": "<="}.get(spec.operator)
    if opposite:
        yield f"{opposite}{spec.version}"
    elif spec.operator == "==":
        version = spec.version.removesuffix(".*")
        yield f"<{version}"
        release = Version(version).release
        yield f">={'.'.join(map(str, (*release[:-1], release[-1] + 1)))}"


def _within(wanted: str) -> str:
    """A version that satisfies the comparisons, the lowest that they name if there is one."""
    version = satisfying(wanted)
    assert version is not None, f"no version satisfies {wanted}"  # rules and releases are checked by tests
    return version
