"""One change of a host or of what runs there, what it costs, and where such changes are looked for. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from packaging.specifiers import Specifier, SpecifierSet
from packaging.version import Version

from tasks.compatibility.builds import torch_release
from tasks.compatibility.conditions import PRESENCE, Wanted
from tasks.compatibility.kernels import cuda_builds, platform_of
from tasks.compatibility.models import Change
from tasks.compatibility.rules import ReleaseRow, Tables, WeightTypeRow
from tasks.core.facts import Facts
from tasks.core.versions import satisfying

# What a change costs the user, cheapest first: another index or pin, another release, a package for the whole host,
# a reboot, another engine with everything that depends on it.
PIN, RELEASE, HOST_PACKAGE, DRIVER, OLDER_DRIVER, ENGINE = 1.0, 2.0, 3.0, 4.0, 5.0, 8.0
STEP = 0.02
"""Added for each version in between: of two that pass, the nearer one wins."""

EVERYWHERE = "llama.cpp"
BY_TORCH = "transformers"
"""Serves wherever its torch does; of its releases the tables name the newest."""


class _Gone:
    """A fact that is no longer known after a move."""


GONE = _Gone()


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
        return Facts.model_validate({name: value for name, value in known.items() if value is not GONE})


@dataclass(frozen=True)
class Moves:
    """Changes of one host and stack. `blocking` are the tables with only the rules that block."""

    facts: Facts
    tables: Tables
    blocking: Tables

    def releases(self, package: str) -> list[ReleaseRow]:
        """Those that the tables list, the oldest first."""
        return [row for row in self.tables.releases if row.package == package]

    def newest(self, package: str) -> str | None:
        """The newest version that exists, if the tables name it."""
        return next((row.version for row in self.tables.newest if row.package == package), None)

    def torch(self, release: ReleaseRow) -> ReleaseRow | None:
        """The release of torch that an engine pins."""
        return torch_release(release.torch, self.tables) if release.torch else None

    def default_build(self, torch: ReleaseRow | None) -> str | None:
        """The CUDA build of a release of torch that this platform gets first."""
        return next(iter(cuda_builds(self.tables, torch, platform_of(self.facts))), None) if torch else None

    def sized(self, here: WeightTypeRow | None, wanted: WeightTypeRow) -> dict[str, Any]:
        """The facts of another type of weights, whose size follows from its bits."""
        size = self.facts.weights_bytes
        known = {} if size is None or here is None else {"weights_bytes": int(size * wanted.bits / here.bits)}
        return {"dtype": wanted.name, **known}

    def boundaries(self, field: str) -> set[Specifier]:
        """Comparisons that blocking rules make with a field."""
        conditions = (part for rule in self.blocking.rules for part in (rule.when, rule.unless))
        return {spec for condition in conditions for spec in _comparisons(condition.get(field))}


def _comparisons(wanted: Wanted | None) -> Iterable[Specifier]:
    if not isinstance(wanted, str) or wanted in PRESENCE or "@" in wanted:
        return ()
    return SpecifierSet(wanted)


def between(versions: Iterable[str], one: str, other: str | None) -> int:
    """How many of `versions` lie in between; from nothing, any version is the first."""
    if other is None:
        return 0
    low, high = sorted((Version(one), Version(Version(other).public)))
    return sum(low < Version(version) <= high for version in versions)


def beyond(spec: Specifier) -> Iterator[str]:
    """Comparisons that hold exactly where `spec` does not."""
    opposite = {"<": ">=", ">=": "<", "<=": ">", ">": "<="}.get(spec.operator)
    if opposite:
        yield f"{opposite}{spec.version}"
    elif spec.operator == "==":
        version = spec.version.removesuffix(".*")
        yield f"<{version}"
        release = Version(version).release
        yield f">={'.'.join(map(str, (*release[:-1], release[-1] + 1)))}"


def within(wanted: str) -> str:
    """A version that satisfies the comparisons, the lowest that they name if there is one."""
    version = satisfying(wanted)
    assert version is not None, f"no version satisfies {wanted}"  # rules and releases are checked by tests
    return version
