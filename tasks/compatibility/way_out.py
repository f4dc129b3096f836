"""The way out of a block: the smallest change of driver, packages or weights that passes the tables. Pure.

Candidates come from the tables alone: releases with their pins, driver branches, types of weights, other engines, and
the versions at which rules begin or cease to apply. Each is judged like any host before it is proposed, with facts as
complete as before. GPUs and model family stay.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from packaging.specifiers import Specifier, SpecifierSet
from packaging.version import Version

from tasks.compatibility.builds import TORCH, Wheel, build_row, for_major, in_words, torch_release
from tasks.compatibility.conditions import (
    GPU,
    PACKAGE,
    PRESENCE,
    Subject,
    Wanted,
    any_holds,
    contains,
    evaluate,
)
from tasks.compatibility.drivers import Drivers, is_wsl, tegra_row
from tasks.compatibility.kernels import builds, index_name, platform_of
from tasks.compatibility.models import Change, CompatibilityResult, Measurement, Survey, WayOut
from tasks.compatibility.pins import broken_pins, wanted_of
from tasks.compatibility.plan import judge
from tasks.compatibility.rules import ReleaseRow, Rule, Tables, WeightTypeRow, load_tables
from tasks.compatibility.subject import describe, drivers_of, find_engine, native_cuda, with_engine
from tasks.compatibility.weights import find_type
from tasks.compatibility.wording import without_contradicted_fixes
from tasks.core.facts import Facts
from tasks.core.verdicts import CompatibilityVerdict
from tasks.core.versions import major_minor, same_minor, satisfying

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

_FULL_BITS = 16
"""Types of as many bits are the model as it is; others are another file of it."""
_EVERYWHERE = "llama.cpp"
_BY_TORCH = "transformers"
"""Serves wherever its torch does; of its releases the tables name the newest."""
_FROM_THE_STACK = frozenset({"NOT-KNOWN-ENGINE-VERSION", "NOT-KNOWN-WEIGHTS"})
"""What is not known of a stack: no way out leads from a known one to one of which more is unknown."""
_GGUF = {8: "q8_0", 4: "q4_k_m"}
"""The GGUF type nearest to weights of so many bits."""
_IN_PARTS = frozenset(
    {"build_odd", "build_odd_optional", "glibc_needed", "mixed_cuda", "pin_broken", "pin_near"}
)
"""Fields that tell of several packages: a move may mend one of them, and it takes more than one to lift the rule."""
_BUILT_BY_USERS = (_EVERYWHERE, _BY_TORCH)
"""Engines that people build, or install for any CUDA: another build is a way out though no release offers it."""
_GGUF_ENGINES = ("llama.cpp", "ollama")
_TOOLKIT = "1.17.8"
"""Any version of NVIDIA's container toolkit: no rule distinguishes them."""


class _Gone:
    """A fact that is no longer known after a move."""


_GONE = _Gone()
_OWN_LIBRARY: Mapping[str, Any] = {"forward_compat": False, "cuda_library": _GONE}
"""Programs load the driver's own libcuda."""


@dataclass(frozen=True)
class Move:
    """One change: its price, its description, what it does to the facts, and why this one. Of each `side`, one is
    chosen."""

    side: str
    price: float
    changes: tuple[Change, ...]
    facts: Mapping[str, Any]
    why: str

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
    return without_contradicted_fixes(
        result.model_copy(update={"ways_out": ways_out(result, survey, tables)})
    )


def ways_out(result: CompatibilityResult, survey: Survey, tables: Tables) -> tuple[WayOut, ...]:
    """The nearest changes that make the host pass, at most one of each kind.

    None if the host is not blocked, or if a measurement on it blocks."""
    return tuple(way for way, _ in ways_with_facts(result, survey, tables))


def ways_with_facts(
    result: CompatibilityResult, survey: Survey, tables: Tables
) -> tuple[tuple[WayOut, Facts], ...]:
    """The ways out, each with the facts that the host would then have."""
    blocks = [finding for finding in result.findings if finding.severity == "block"]
    if not blocks or any(finding.precedence == _MEASURED for finding in blocks):
        return ()
    # Without sightings: sources may disagree about facts that the moves change.
    unknown = {finding.rule for finding in result.findings} & _FROM_THE_STACK
    return _Search(survey.model_copy(update={"sightings": ()}), tables, unknown).run()


class _Search:
    """Looks for combinations of moves that pass.

    `_stuck` are the rules that block the host and that no move so far has lifted, or lifted in part."""

    def __init__(self, survey: Survey, tables: Tables, unknown: AbstractSet[str]) -> None:
        self._survey = survey
        self._unknown = unknown
        self._tables = tables
        rules = tuple(rule for rule in tables.rules if rule.severity in ("block", "unknown"))
        self._blocking = tables.model_copy(update={"rules": rules})
        self._order = [rule for rule in rules if rule.severity == "block"]
        self._here = describe(self._survey, tables)
        self._stuck = [rule for rule in self._order if _blocks(rule, self._here)]

    def run(self) -> tuple[tuple[WayOut, Facts], ...]:
        """Single moves first; if none helps, two, then three together; another engine last. What no single move
        lifts, no combination does."""
        candidates = _Candidates(self._survey.facts, self._tables, self._blocking)
        return self._nearest(candidates.of_this_engine(), 3) or self._nearest(
            candidates.of_other_engines(), 1
        )

    def _nearest(self, sides: Mapping[str, Sequence[Move]], most: int) -> tuple[tuple[WayOut, Facts], ...]:
        tries = iter(range(_TRIES))
        for together in range(1, most + 1):
            found: list[tuple[float, WayOut, Facts]] = []
            for names in combinations(sides, together):
                best = self._best([sides[name] for name in names], tries)
                if best is not None:
                    found.append(best)
            if found:
                found.sort(key=lambda way: (way[0], [change.what for change in way[1].changes]))
                ways = [(way, facts) for _, way, facts in found]
                return tuple(
                    (way, facts) for way, facts in ways if not any(_is_part(other, way) for other, _ in ways)
                )[:MOST]
            if self._stuck:
                break
        return ()

    def _best(
        self, sides: Sequence[Sequence[Move]], tries: Iterator[int]
    ) -> tuple[float, WayOut, Facts] | None:
        """The cheapest choice of one move from each side that passes, within the tries that are left."""
        for (price, moves), _ in zip(_by_price(sides), tries, strict=False):
            facts = self._survey.facts
            for move in moves:
                facts = move.apply(facts)
            survey = self._survey.model_copy(update={"facts": facts})
            if self._is_blocked(survey):
                continue
            if judge(survey, tables=self._blocking).verdict is not CompatibilityVerdict.PASS:
                continue
            result = judge(survey, tables=self._tables)
            unknown = {finding.rule for finding in result.findings} & _FROM_THE_STACK
            if result.verdict in PASSES and unknown <= self._unknown:
                changes = tuple(change for move in moves for change in move.changes)
                why = "; ".join(dict.fromkeys(move.why for move in moves))
                return price, WayOut(changes=changes, verdict=result.verdict, why=why), facts
        return None

    def _is_blocked(self, survey: Survey) -> bool:
        """Whether a rule is known to block. What blocked one candidate mostly blocks the next: it is asked first."""
        subject = describe(survey, self._tables)
        self._stuck = [rule for rule in self._stuck if not self._is_eased(rule, subject)]
        found = next((rule for rule in self._order if _blocks(rule, subject)), None)
        if found is not None:
            self._order.remove(found)
            self._order.insert(0, found)
        return found is not None

    def _is_eased(self, rule: Rule, subject: Subject) -> bool:
        """Where a field of the GPU exempts it from a rule, another rule speaks of that GPU."""
        asked = {*rule.when, *(str(wanted).partition("@")[2] for wanted in rule.when.values())}
        parts = _IN_PARTS.intersection(asked)
        changed = any(subject.values.get(field) != self._here.values.get(field) for field in parts)
        exempts = {field: wanted for field, wanted in rule.unless.items() if not field.startswith(GPU)}
        return changed or not evaluate(rule.when, subject).holds or any_holds(exempts, subject)


def _blocks(rule: Rule, subject: Subject) -> bool:
    return bool(evaluate(rule.when, subject).holds) and not any_holds(rule.unless, subject)


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
                *self._broken_pins(),
                *self._weights(),
            ]
        )

    def of_other_engines(self) -> dict[str, list[Move]]:
        """Engines that serve these GPUs: the listed releases, the newest first. Last the one that serves without."""
        row = find_engine(self.facts.engine, self.tables)
        if row is None:
            return {}
        moves = [*self._processor(row.name)] if row.name != _EVERYWHERE else []
        if self.facts.gpus:
            listed = [release for release in self.tables.releases if release.package != row.name]
            moves += self._engines_with_builds(row.name, listed)
            if row.name != _BY_TORCH:
                moves += self._by_torch(row.name)
        return _by_side(moves)

    def _engines_with_builds(self, current: str, listed: Sequence[ReleaseRow]) -> Iterator[Move]:
        for place, release in enumerate(reversed(listed)):
            pinned = self._torch(release)
            if release.package == "torch" or (release.torch and pinned is None):
                continue
            torch: dict[str, str] = {"torch": release.torch} if release.torch else {}
            default = self._default_build(pinned)
            if pinned and default is None:
                continue
            for build in (default,) if pinned else release.cuda or (None,):
                packages = {release.package: release.version, **torch}
                yield self._engine(current, release.package, release.version, packages, build, place)

    def _by_torch(self, current: str) -> Iterator[Move]:
        newest = next((row.version for row in self.tables.newest if row.package == _BY_TORCH), None)
        for place, release in enumerate(reversed(self._releases("torch"))):
            for cuda in builds(self.tables, release, platform_of(self.facts)) if newest else ():
                packages = {_BY_TORCH: newest, "torch": f"{release.version}+{index_name(cuda)}"}
                yield self._engine(current, _BY_TORCH, newest, packages, cuda, place)

    def _engine(
        self,
        current: str,
        name: str,
        version: str | None,
        packages: Mapping[str, str | None],
        cuda: str | None,
        place: int,
    ) -> Move:
        """Another engine that computes on the GPU, with what it is to be installed with."""
        torch = packages.get("torch")
        build = (
            f" {version}, torch {torch}" if torch else f", built for CUDA {cuda}" if cuda else f" {version}"
        )
        changes = [Change(what="engine", current=current, wanted=f"{name}{build}")]
        facts: dict[str, Any] = {
            "engine": name,
            "engine_version": version,
            "packages": {**dict.fromkeys(self.facts.packages), **packages},
            "cuda_build": cuda,
        }
        if name in _GGUF_ENGINES:
            self._as_gguf(changes, facts)
        gpus = ", ".join(dict.fromkeys(gpu.name for gpu in self.facts.gpus))
        why = f"{name} serves {gpus} on the GPU"
        return Move(f"engine {name}", _ENGINE + _STEP * place, tuple(changes), facts, why)

    def _processor(self, current: str) -> Iterator[Move]:
        changes = [Change(what="engine", current=current, wanted=f"{_EVERYWHERE} on the CPU")]
        facts: dict[str, Any] = {
            "engine": _EVERYWHERE,
            "engine_version": self._releases(_EVERYWHERE)[-1].version,
            "packages": dict.fromkeys(self.facts.packages),
            "cuda_build": None,
        }
        self._as_gguf(changes, facts)
        why = f"{_EVERYWHERE} serves without a GPU, slowly"
        yield Move("processor", 2 * _ENGINE, tuple(changes), facts, why)

    def _as_gguf(self, changes: list[Change], facts: dict[str, Any]) -> None:
        """The weights as GGUF: in 16 bits as they are, else in the type of about as many bits."""
        here = find_type(self.facts.dtype, self.tables)
        if here is None or here.bits >= _FULL_BITS:
            return
        wanted = find_type(_GGUF[min(_GGUF, key=lambda bits: abs(bits - here.bits))], self.tables)
        if wanted is not None and not self._is_gguf(here):
            changes.append(Change(what="dtype", current=self.facts.dtype, wanted=wanted.name))
            facts |= self._sized(here, wanted)

    def _is_gguf(self, here: WeightTypeRow) -> bool:
        return any(_EVERYWHERE in row.engines and here.name in row.types for row in self.tables.weights)

    def _sized(self, here: WeightTypeRow | None, wanted: WeightTypeRow) -> dict[str, Any]:
        """The facts of another type of weights, whose size follows from its bits."""
        size = self.facts.weights_bytes
        known = {} if size is None or here is None else {"weights_bytes": int(size * wanted.bits / here.bits)}
        return {"dtype": wanted.name, **known}

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
        versions |= {spec.version for spec in self._boundaries("driver") if spec.operator in ("<", ">=")}
        ordered = sorted(versions, key=Version)
        for version in ordered:
            facts = self.facts.model_copy(update={"driver": version, "cuda_driver": None})
            cuda = native_cuda(facts, self.tables)
            if cuda is None or (current is not None and Version(version) == Version(current)):
                continue
            newer = current is None or Version(version) > Version(current)
            price = (_DRIVER if newer else _OLDER_DRIVER) + _STEP * _steps(ordered, version, current)
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
            yield Move("driver", _DRIVER + _STEP * place, (change,), facts, f"it brings CUDA {row.cuda}")

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
            yield Move("cuda-compat", _PIN, (self._without_compat(),), there, why)
        build = major_minor(facts.cuda_build) if facts.cuda_build else None
        row = next((row for row in self.tables.compat if build and Version(row.cuda) >= Version(build)), None)
        if row is not None and not is_wsl(facts):
            change = Change(
                what="cuda-compat",
                current=facts.cuda_driver if facts.forward_compat else None,
                wanted=f"{row.cuda}, installed and on the library path",
            )
            why = f"its user-mode driver runs newer CUDA on driver {facts.driver}"
            there = {"forward_compat": True, "cuda_driver": row.cuda, "cuda_library": _GONE}
            yield Move("cuda-compat", _HOST_PACKAGE, (change,), there, why)

    def _containers(self) -> Iterator[Move]:
        """If Docker cannot pass GPUs to containers: make it able to, or serve as a process."""
        facts = self.facts
        if facts.image_requires:
            disabled = Change(what="NVIDIA_DISABLE_REQUIRE", current=None, wanted="true, in the container")
            why = "CUDA itself runs on this driver"
            yield Move("image", _PIN, (disabled,), {"image_requires": ()}, why)
        if (
            (facts.target or "").lower() != "docker"
            or not facts.known("container_gpus")
            or facts.container_gpus
        ):
            return
        process = Change(what="target", current=facts.target, wanted="process")
        why = "a process sees the GPUs without a container toolkit"
        yield Move("target", _RELEASE, (process,), {"target": "process"}, why)
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
        yield Move("container toolkit", _HOST_PACKAGE, (change,), there, why)

    def _software(self) -> Iterator[Move]:
        """Another release of the engine, with what it pins; of torch if no engine pins it; else another build."""
        row = find_engine(self.facts.engine, self.tables)
        own = (
            [release for release in self._releases(row.name) if release.torch or not release.cuda]
            if row
            else []
        )
        if row and own:
            current = self.facts.engine_version or self.facts.packages.get(row.name)
            yield from (self._release(release, current, own) for release in own if release.version != current)
            yield from self._missing_build(own, current)
            yield from self._other_builds(row.name, own, current)
        elif "torch" in self.facts.packages:
            yield from self._torch_builds(self.facts.packages["torch"])
        elif self.facts.cuda_build and (row is None or row.name in _BUILT_BY_USERS):
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
        for package, wanted in wanted_of(release.package, release.version, self.tables).items():
            here = self.facts.packages.get(package)
            if here and package != TORCH and not contains(wanted, here):
                packages[package] = _within(wanted)
                changes.append(Change(what=package, current=here, wanted=wanted))
        steps = _steps([row.version for row in own], release.version, current)
        older = current is not None and Version(release.version) < Version(current)
        price = _RELEASE + _STEP * (steps + older / 2)
        built = f", built for CUDA {facts['cuda_build']}" if "cuda_build" in facts else ""
        why = f"the nearest listed release with which this passes{built}"
        return Move("software", price, tuple(changes), facts, why)

    def _other_builds(self, package: str, own: Sequence[ReleaseRow], current: str | None) -> Iterator[Move]:
        """Builds of the engine for another CUDA, of the release at hand first; torch comes for the same CUDA."""
        here = Version(current).public if current else None
        for release in dict.fromkeys([*([here] if here else []), *(row.version for row in own)]):
            row = build_row(package, release, self.tables)
            torch = wanted_of(package, release, self.tables).get(TORCH, "")
            if row is None or not torch.startswith("=="):
                continue
            steps = _steps([one.version for one in own], release, here)
            for cuda in row.others:
                wheel, pinned = Wheel(release, cuda, row), f"{torch.removeprefix('==')}+{index_name(cuda)}"
                facts: dict[str, Any] = {
                    "engine_version": wheel.local,
                    "packages": {package: wheel.local, TORCH: pinned},
                    "cuda_build": cuda,
                }
                words = in_words(package, wheel).removeprefix(f"{package} ")
                changes = [Change(what=package, current=current, wanted=words)]
                if self.facts.packages.get(TORCH) != pinned:
                    changes.append(Change(what=TORCH, current=self.facts.packages.get(TORCH), wanted=pinned))
                price = _PIN + _STEP if release == here else _RELEASE
                nearest = "the same release" if release == here else "the nearest release with such a build"
                why = f"{nearest}, built for CUDA {cuda}"
                yield Move("software", price + _STEP * steps, tuple(changes), facts, why)

    def _broken_pins(self) -> Iterator[Move]:
        """What the packages at hand ask for and do not get."""
        for pin in broken_pins(with_engine(self.facts, self.tables), self.tables):
            version = _within(pin.wanted)
            facts: dict[str, Any] = {"packages": {pin.required: version}}
            side = "software" if pin.required == TORCH else pin.required
            if pin.required == TORCH and self.facts.cuda_build:
                release = torch_release(version, self.tables)
                major = self.facts.cuda_build.partition(".")[0]
                cuda = for_major(release.cuda, major) if release else None
                facts["cuda_build"] = cuda or (release.cuda[0] if release else self.facts.cuda_build)
            change = Change(what=pin.required, current=pin.installed, wanted=pin.wanted.removeprefix("=="))
            yield Move(side, _PIN, (change,), facts, f"what {pin.package} asks for")

    def _missing_build(self, own: Sequence[ReleaseRow], current: str | None) -> Iterator[Move]:
        """The CUDA build of the release at hand, where there are GPUs and no CUDA build."""
        known = [row for row in own if current is None or Version(row.version) <= Version(current)] or own
        pinned = self._torch(known[-1])
        cuda = self._default_build(pinned)
        if pinned and cuda and self.facts.gpus and self.facts.cuda_build is None:
            change = Change(what="cuda_build", current=None, wanted=cuda)
            facts = {"cuda_build": cuda, "packages": {"torch": known[-1].torch}}
            yield Move("software", _PIN, (change,), facts, "the environment holds no CUDA build")

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
                price = (_PIN if same else _RELEASE) + _STEP * steps
                nearest = "the same release" if same else "the nearest listed release with which this passes"
                why = f"{nearest}, built for CUDA {cuda}"
                yield Move("software", price, (change,), facts, why)

    def _builds(self, current: str) -> Iterator[Move]:
        """A build of the same engine for another CUDA."""
        versions = sorted({row.cuda for row in self.tables.branches}, key=Version)
        for cuda in versions:
            if cuda != major_minor(current):
                change = Change(what="cuda_build", current=current, wanted=cuda)
                price = _PIN + _STEP * _steps(versions, cuda, current)
                why = "the nearest CUDA whose builds run here"
                yield Move("software", price, (change,), {"cuda_build": cuda}, why)

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
                    why = "the nearest version that no rule refuses"
                    yield Move(package, price, (change,), {"packages": {package: version}}, why)
            if any(rule.when.get(f"{PACKAGE}{package}") == PRESENCE[1] for rule in self.blocking.rules):
                change = Change(what=package, current=current, wanted="removed")
                why = "the block is about this package"
                yield Move(package, _PIN, (change,), {"packages": {package: None}}, why)

    def _weights(self) -> Iterator[Move]:
        """Other types of weights. Those of 16 bits are the model as it is; others are another file of it, looked for
        if the model's own is such a file, or may not fit."""
        here = find_type(self.facts.dtype, self.tables)
        other_files = self.facts.weights_bytes is not None or (here is not None and here.bits < _FULL_BITS)
        for row in self.tables.weight_types if self.facts.dtype else ():
            same_file = row.bits == _FULL_BITS
            if row != here and row.bits <= _FULL_BITS and (same_file or other_files):
                yield self._other_weights(here, row, "dtype" if same_file else "file")

    def _other_weights(self, here: WeightTypeRow | None, row: WeightTypeRow, side: str) -> Move:
        facts = self._sized(here, row)
        size = facts.get("weights_bytes")
        now = f" instead of {here.bits:g}" if here else ""
        why = f"{row.bits:g} bits a weight{now}" + ("" if size is None else f", {size / 1e9:.0f} GB")
        change = Change(what="dtype", current=self.facts.dtype, wanted=row.name)
        another_form = here is not None and row.form != here.form
        price = _PIN if side == "dtype" else _RELEASE + another_form * _PIN
        distance = abs(row.bits - (here.bits if here else _FULL_BITS))
        return Move(side, price + _STEP * distance, (change,), facts, why)

    def _boundaries(self, field: str) -> set[Specifier]:
        """Comparisons that blocking rules make with a field."""
        conditions = (part for rule in self.blocking.rules for part in (rule.when, rule.unless))
        return {spec for condition in conditions for spec in _comparisons(condition.get(field))}


def _is_part(one: WayOut, other: WayOut) -> bool:
    """Whether one way needs only some of the other's changes."""
    return len(one.changes) < len(other.changes) and set(one.changes) <= set(other.changes)


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
