"""Ways out that change the packages or the weights: releases, builds for another CUDA, pins, types. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from packaging.version import Version

from tasks.compatibility.builds import TORCH, Wheel, build_row, for_major, in_words, index_name, torch_release
from tasks.compatibility.conditions import PACKAGE, PRESENCE, contains
from tasks.compatibility.engines import find_engine, with_engine
from tasks.compatibility.kernels import cuda_builds, platform_of
from tasks.compatibility.models import Change
from tasks.compatibility.moves import (
    BY_TORCH,
    EVERYWHERE,
    PIN,
    RELEASE,
    STEP,
    Move,
    Moves,
    between,
    beyond,
    within,
)
from tasks.compatibility.pins import broken_pins, wanted_of
from tasks.compatibility.rules import ReleaseRow, WeightTypeRow
from tasks.compatibility.weights import FULL_BITS, find_type
from tasks.core.versions import major_minor, same_minor

_BUILT_BY_USERS = (EVERYWHERE, BY_TORCH)
"""Engines that people build, or install for any CUDA: another build is a way out though no release offers it."""


class SoftwareMoves(Moves):
    """Changes of what runs, with the same engine and model."""

    def all(self) -> Iterator[Move]:
        """In any order."""
        yield from self._software()
        yield from self._pins()
        yield from self._broken_pins()
        yield from self._weights()

    def _software(self) -> Iterator[Move]:
        """Another release of the engine, with what it pins; of torch if no engine pins it; else another build."""
        row = find_engine(self.facts.engine, self.tables)
        own = (
            [release for release in self.releases(row.name) if release.torch or not release.cuda]
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

    def _release(self, release: ReleaseRow, current: str | None, own: Sequence[ReleaseRow]) -> Move:
        packages: dict[str, str | None] = {release.package: release.version}
        facts: dict[str, Any] = {"engine_version": release.version, "packages": packages}
        changes = [Change(what=release.package, current=current, wanted=release.version)]
        pinned = self.torch(release)
        if release.torch and pinned:
            packages |= {"torch": release.torch, **self._with_triton(pinned)}
            if self.facts.cuda_build:
                facts["cuda_build"] = self.default_build(pinned)
            here = self.facts.packages.get("torch")
            if here != release.torch:
                changes.append(Change(what="torch", current=here, wanted=release.torch))
        for package, wanted in wanted_of(release.package, release.version, self.tables).items():
            here = self.facts.packages.get(package)
            if here and package != TORCH and not contains(wanted, here):
                packages[package] = within(wanted)
                changes.append(Change(what=package, current=here, wanted=wanted))
        steps = between([row.version for row in own], release.version, current)
        older = current is not None and Version(release.version) < Version(current)
        price = RELEASE + STEP * (steps + older / 2)
        built = f", built for CUDA {facts['cuda_build']}" if "cuda_build" in facts else ""
        why = f"the nearest listed release with which this passes{built}"
        return Move("software", price, tuple(changes), facts, why)

    def _with_triton(self, torch: ReleaseRow) -> dict[str, str | None]:
        """The Triton that comes with a release of torch, where there is one among the packages."""
        return {name: torch.triton for name in self.facts.packages.keys() & {"triton"} if torch.triton}

    def _other_builds(self, package: str, own: Sequence[ReleaseRow], current: str | None) -> Iterator[Move]:
        """Builds of the engine for another CUDA, of the release at hand first; torch comes for the same CUDA."""
        here = Version(current).public if current else None
        for release in dict.fromkeys([*([here] if here else []), *(row.version for row in own)]):
            row = build_row(package, release, self.tables)
            torch = wanted_of(package, release, self.tables).get(TORCH, "")
            if row is None or not torch.startswith("=="):
                continue
            steps = between([one.version for one in own], release, here)
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
                price = PIN + STEP if release == here else RELEASE
                nearest = "the same release" if release == here else "the nearest release with such a build"
                why = f"{nearest}, built for CUDA {cuda}"
                yield Move("software", price + STEP * steps, tuple(changes), facts, why)

    def _broken_pins(self) -> Iterator[Move]:
        """What the packages at hand ask for and do not get."""
        for pin in broken_pins(with_engine(self.facts, self.tables), self.tables):
            version = within(pin.wanted)
            facts: dict[str, Any] = {"packages": {pin.required: version}}
            side = "software" if pin.required == TORCH else pin.required
            if pin.required == TORCH and self.facts.cuda_build:
                release = torch_release(version, self.tables)
                major = self.facts.cuda_build.partition(".")[0]
                cuda = for_major(release.cuda, major) if release else None
                facts["cuda_build"] = cuda or (release.cuda[0] if release else self.facts.cuda_build)
            change = Change(what=pin.required, current=pin.installed, wanted=pin.wanted.removeprefix("=="))
            yield Move(side, PIN, (change,), facts, f"what {pin.package} asks for")

    def _missing_build(self, own: Sequence[ReleaseRow], current: str | None) -> Iterator[Move]:
        """The CUDA build of the release at hand, where there are GPUs and no CUDA build."""
        known = [row for row in own if current is None or Version(row.version) <= Version(current)] or own
        pinned = self.torch(known[-1])
        cuda = self.default_build(pinned)
        if pinned and cuda and self.facts.gpus and self.facts.cuda_build is None:
            change = Change(what="cuda_build", current=None, wanted=cuda)
            facts = {"cuda_build": cuda, "packages": {"torch": known[-1].torch}}
            yield Move("software", PIN, (change,), facts, "the environment holds no CUDA build")

    def _torch_builds(self, current: str) -> Iterator[Move]:
        releases = self.releases("torch")
        public = Version(current).public
        for release in releases:
            same = same_minor(release.version, public)
            version = public if same else release.version
            steps = between([row.version for row in releases], release.version, public)
            for cuda in cuda_builds(self.tables, release, platform_of(self.facts)):
                if same and cuda == self.facts.cuda_build:
                    continue
                change = Change(what="torch", current=current, wanted=f"{version}+{index_name(cuda)}")
                packages = {"torch": version, **self._with_triton(release)}
                facts = {"packages": packages, "cuda_build": cuda}
                price = (PIN if same else RELEASE) + STEP * steps
                nearest = "the same release" if same else "the nearest listed release with which this passes"
                why = f"{nearest}, built for CUDA {cuda}"
                yield Move("software", price, (change,), facts, why)

    def _builds(self, current: str) -> Iterator[Move]:
        """A build of the same engine for another CUDA."""
        versions = sorted({row.cuda for row in self.tables.branches}, key=Version)
        for cuda in versions:
            if cuda != major_minor(current):
                change = Change(what="cuda_build", current=current, wanted=cuda)
                price = PIN + STEP * between(versions, cuda, current)
                why = "the nearest CUDA whose builds run here"
                yield Move("software", price, (change,), {"cuda_build": cuda}, why)

    def _pins(self) -> Iterator[Move]:
        """Other versions of the remaining packages, at the boundaries that rules draw; or none."""
        for package, current in sorted(self.facts.packages.items()):
            if package in ("torch", self.facts.engine):
                continue
            newest = self.newest(package)
            wanted_versions = [
                (wanted, within(wanted))
                for spec in sorted(self.boundaries(f"{PACKAGE}{package}"), key=str)
                for wanted in beyond(spec)
                if not contains(wanted, current)
            ]
            for wanted, version in wanted_versions:
                if newest is None or Version(version) <= Version(newest):
                    change = Change(what=package, current=current, wanted=wanted)
                    price = PIN + STEP * abs(Version(version).major - Version(current).major)
                    why = "the nearest version that no rule refuses"
                    yield Move(package, price, (change,), {"packages": {package: version}}, why)
            if any(rule.when.get(f"{PACKAGE}{package}") == PRESENCE[1] for rule in self.blocking.rules):
                change = Change(what=package, current=current, wanted="removed")
                why = "the block is about this package"
                yield Move(package, PIN, (change,), {"packages": {package: None}}, why)

    def _weights(self) -> Iterator[Move]:
        """Other types of weights. Those of 16 bits are the model as it is; others are another file of it, looked for
        if the model's own is such a file, or may not fit."""
        here = find_type(self.facts.dtype, self.tables)
        other_files = self.facts.weights_bytes is not None or (here is not None and here.bits < FULL_BITS)
        for row in self.tables.weight_types if self.facts.dtype else ():
            same_file = row.bits == FULL_BITS
            if row != here and row.bits <= FULL_BITS and (same_file or other_files):
                yield self._other_weights(here, row, "dtype" if same_file else "file")

    def _other_weights(self, here: WeightTypeRow | None, row: WeightTypeRow, side: str) -> Move:
        facts = self.sized(here, row)
        size = facts.get("weights_bytes")
        now = f" instead of {here.bits:g}" if here else ""
        why = f"{row.bits:g} bits a weight{now}" + ("" if size is None else f", {size / 1e9:.0f} GB")
        change = Change(what="dtype", current=self.facts.dtype, wanted=row.name)
        another_form = here is not None and row.form != here.form
        price = PIN if side == "dtype" else RELEASE + another_form * PIN
        distance = abs(row.bits - (here.bits if here else FULL_BITS))
        return Move(side, price + STEP * distance, (change,), facts, why)
