"""Ways out that lead to another engine, with the weights that it takes. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tasks.compatibility.builds import index_name
from tasks.compatibility.engines import find_engine
from tasks.compatibility.kernels import cuda_builds, platform_of
from tasks.compatibility.models import Change
from tasks.compatibility.moves import BY_TORCH, ENGINE, EVERYWHERE, STEP, Move, Moves
from tasks.compatibility.rules import ReleaseRow, WeightTypeRow
from tasks.compatibility.weights import FULL_BITS, find_type

_GGUF = {8: "q8_0", 4: "q4_k_m"}
"""The GGUF type nearest to weights of so many bits."""
_GGUF_ENGINES = ("llama.cpp", "ollama")


class EngineMoves(Moves):
    """Changes of the engine."""

    def all(self) -> Iterator[Move]:
        """Engines that serve these GPUs: the listed releases, the newest first; and the one that serves without."""
        row = find_engine(self.facts.engine, self.tables)
        if row is None:
            return
        if row.name != EVERYWHERE:
            yield from self._processor(row.name)
        if self.facts.gpus:
            listed = [release for release in self.tables.releases if release.package != row.name]
            yield from self._engines_with_builds(row.name, listed)
            if row.name != BY_TORCH:
                yield from self._by_torch(row.name)

    def _engines_with_builds(self, current: str, listed: Sequence[ReleaseRow]) -> Iterator[Move]:
        for place, release in enumerate(reversed(listed)):
            pinned = self.torch(release)
            if release.package == "torch" or (release.torch and pinned is None):
                continue
            torch: dict[str, str] = {"torch": release.torch} if release.torch else {}
            default = self.default_build(pinned)
            if pinned and default is None:
                continue
            for build in (default,) if pinned else release.cuda or (None,):
                packages = {release.package: release.version, **torch}
                yield self._engine(current, release.package, release.version, packages, build, place)

    def _by_torch(self, current: str) -> Iterator[Move]:
        newest = self.newest(BY_TORCH)
        for place, release in enumerate(reversed(self.releases("torch"))):
            for cuda in cuda_builds(self.tables, release, platform_of(self.facts)) if newest else ():
                packages = {BY_TORCH: newest, "torch": f"{release.version}+{index_name(cuda)}"}
                yield self._engine(current, BY_TORCH, newest, packages, cuda, place)

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
        return Move(f"engine {name}", ENGINE + STEP * place, tuple(changes), facts, why)

    def _processor(self, current: str) -> Iterator[Move]:
        changes = [Change(what="engine", current=current, wanted=f"{EVERYWHERE} on the CPU")]
        facts: dict[str, Any] = {
            "engine": EVERYWHERE,
            "engine_version": self.releases(EVERYWHERE)[-1].version,
            "packages": dict.fromkeys(self.facts.packages),
            "cuda_build": None,
        }
        self._as_gguf(changes, facts)
        why = f"{EVERYWHERE} serves without a GPU, slowly"
        yield Move("processor", 2 * ENGINE, tuple(changes), facts, why)

    def _as_gguf(self, changes: list[Change], facts: dict[str, Any]) -> None:
        """The weights as GGUF: in 16 bits as they are, else in the type of about as many bits."""
        here = find_type(self.facts.dtype, self.tables)
        if here is None or here.bits >= FULL_BITS:
            return
        wanted = find_type(_GGUF[min(_GGUF, key=lambda bits: abs(bits - here.bits))], self.tables)
        if wanted is not None and not self._is_gguf(here):
            changes.append(Change(what="dtype", current=self.facts.dtype, wanted=wanted.name))
            facts |= self.sized(here, wanted)

    def _is_gguf(self, here: WeightTypeRow) -> bool:
        return any(EVERYWHERE in row.engines and here.name in row.types for row in self.tables.weights)
