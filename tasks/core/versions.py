"""Comparisons of versions: which version satisfies them, and whether two can be satisfied at once. Pure."""

from __future__ import annotations

import functools

from packaging.specifiers import SpecifierSet
from packaging.version import Version


def satisfying(*comparisons: SpecifierSet | str) -> str | None:
    """A version that satisfies them all: one that they name, else a neighbour of one; None if there is none.

    It can miss a version in the gap between two neighbours, where nothing is ever released.
    """
    together = SpecifierSet(",".join(str(part) for part in comparisons if str(part)))
    named = sorted(Version(spec.version.removesuffix(".*")) for spec in together if spec.operator != "===")
    if not named:
        return "1"
    candidates = [*map(str, named), *map(_just_below, named), *map(_just_above, named)]
    return next((version for version in candidates if together.contains(version, prereleases=True)), None)


def major_minor(version: str) -> str:
    """`12.8.1` and `12.8` are the same CUDA as far as compatibility is concerned."""
    parsed = Version(version)
    return f"{parsed.major}.{parsed.minor}"


@functools.lru_cache(maxsize=1024)
def same_minor(one: str, other: str) -> bool:
    """Whether two versions are of one minor release."""
    return Version(one).release[:2] == Version(other).release[:2]


def _just_below(version: Version) -> str:
    release = [*version.release, 0]
    place = max((index for index, number in enumerate(release) if number), default=0)
    return ".".join(map(str, [*release[:place], max(0, release[place] - 1), 9999]))


def _just_above(version: Version) -> str:
    return ".".join(map(str, [*version.release, 1]))
