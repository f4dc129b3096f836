"""What a release asks of other packages, by a table of its pins, and which of them an environment breaks. Pure."""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tasks.compatibility.conditions import contains
from tasks.compatibility.rules import PinRow, Tables
from tasks.core.versions import same_minor

TORCH = "torch"
LINKED = (TORCH,)
"""Packages whose C++ symbols others are linked against: every other version counts."""
_BUILT_FOR = re.compile(r"torch(\d+\.\d+)(?:\.?\d+)*(?:cxx11abi(true|false))?")
"""In a local version: `2.7.4.post1+cu12torch2.6cxx11abiFALSE`, `0.1.4+cu121torch2.4`."""
_LINKED_WITH = "its C++ extension is linked with that torch: `undefined symbol`"
_ABI_FROM, _ABI_OF_CUDA = Version("2.7"), ("2.6", "cu126")
"""PyTorch's own wheels have the new C++ ABI from 2.7 on, of 2.6 only those for CUDA 12.6."""


@dataclass(frozen=True)
class BrokenPin:
    """`package` asks for `required` as `wanted`, and `installed` is something else. `near` if only the patch release
    differs from an exact pin, or the row says that it mostly works."""

    package: str
    version: str
    required: str
    wanted: str
    installed: str
    near: bool
    why: str | None


def wanted_of(package: str, version: str, tables: Tables) -> Mapping[str, str]:
    """All that a release asks of each package, as comparisons."""
    return _pins_of(tables).wanted(package, version)


def broken_pins(packages: Mapping[str, str], tables: Tables) -> tuple[BrokenPin, ...]:
    """The pins that these packages break, those that certainly fail first. What another pin changes anyway asks for
    nothing yet."""
    found: dict[tuple[str, str], BrokenPin] = {}
    for package in packages.keys() & _pins_of(tables).rows.keys():
        version = packages[package]
        for row, (required, comparisons) in _pins_of(tables).asked(package, version):
            installed = packages.get(required)
            if installed is not None and not contains(comparisons, installed):
                whole = wanted_of(package, version, tables)[required]
                near = row.mild or _is_near(required, comparisons, installed)
                before = found.get((package, required))
                why = row.why or (before.why if before else None)
                near = near and (before is None or before.near)
                found[package, required] = BrokenPin(package, version, required, whole, installed, near, why)
    for linked in _linked(packages):
        found.setdefault((linked.package, TORCH), linked)
    changing = {pin.required for pin in found.values()}
    lasting = [pin for pin in found.values() if pin.package not in changing]
    return tuple(sorted(lasting, key=lambda pin: (pin.near, pin.package, pin.required)))


def _linked(packages: Mapping[str, str]) -> Iterator[BrokenPin]:
    """Packages whose local version names another torch, or another C++ ABI of it, than the installed one."""
    torch = packages.get(TORCH)
    for package, version in packages.items() if torch else ():
        match = _BUILT_FOR.search(Version(version).local or "")
        if match is None or torch is None:
            continue
        if not same_minor(match[1], torch):
            yield BrokenPin(package, version, TORCH, f"=={match[1]}.*", torch, False, _LINKED_WITH)
        elif match[2] and (match[2] == "true") is not _has_new_abi(torch):
            yield BrokenPin(
                package, version, TORCH, f"of its C++ ABI ({match[2]})", torch, False, _LINKED_WITH
            )


def _has_new_abi(torch: str) -> bool:
    minor, build = _ABI_OF_CUDA
    return Version(torch) >= _ABI_FROM or (same_minor(torch, minor) and Version(torch).local == build)


def describe(pin: BrokenPin) -> str:
    """`vllm 0.3.2 asks for torch ==2.1.2; this is 2.2.1`."""
    why = f" ({pin.why})" if pin.why else ""
    return f"{pin.package} {pin.version} asks for {pin.required} {pin.wanted}{why}; this is {pin.installed}"


def way(pin: BrokenPin, tables: Tables) -> str:
    """The version that is asked for, and the nearest release that takes what is installed."""
    if pin.why == _LINKED_WITH:
        return f"install the build of {pin.package} for torch {pin.installed}, or compile it there"
    text = f"install {pin.required} {_in_words(pin.wanted)}"
    release = _taking(pin, tables)
    return text + (
        f", or {pin.package} {release}, which takes {pin.required} {pin.installed}" if release else ""
    )


def tidy(comparisons: str) -> str:
    """Without bounds that others imply: `>=4.51.1,<5,<4.54` is `>=4.51.1,<4.54`."""
    parts = [part.strip() for part in comparisons.split(",") if part.strip()]
    exact = next((part for part in parts if part.startswith("==")), None)
    if exact:
        return exact
    low = max((part for part in parts if part.startswith(">")), key=_bound, default=None)
    high = min((part for part in parts if part.startswith("<")), key=_bound, default=None)
    rest = sorted({part for part in parts if part.startswith(("!", "~"))})
    return ",".join([part for part in (low, high) if part] + rest)


def _in_words(wanted: str) -> str:
    """`2.1.2` for an exact pin, `4.53 (>=4.51.1,<4.54)` where a bound shows which is the newest."""
    if wanted.startswith("=="):
        return wanted.removeprefix("==")
    high = next((part.removeprefix("<") for part in wanted.split(",") if part.startswith("<")), None)
    release = Version(high).release if high and not high.startswith("=") else ()
    if len(release) > 1 and release[1] > 0 and not any(release[2:]):
        return f"{release[0]}.{release[1] - 1} ({wanted})"
    return wanted


def _taking(pin: BrokenPin, tables: Tables) -> str | None:
    """The nearest release of the package that takes the installed version: a newer one if there is one."""
    here = Version(Version(pin.version).public)
    asked = (
        (release, wanted_of(pin.package, str(release), tables))
        for release in _pins_of(tables).releases(pin.package)
    )
    taking = [release for release, wanted in asked if contains(wanted.get(pin.required, "<0"), pin.installed)]
    newer = [release for release in taking if release > here]
    older = [release for release in taking if release < here]
    return str(min(newer)) if newer else str(max(older)) if older else None


class _Pins:
    """The rows by package, and what was already looked up in them: a search asks the same thing hundreds of times."""

    def __init__(self, rows: Sequence[PinRow]) -> None:
        self.rows: dict[str, list[PinRow]] = defaultdict(list)
        for row in rows:
            self.rows[row.package].append(row)
        self._wanted: dict[tuple[str, str], Mapping[str, str]] = {}
        self._releases: dict[str, frozenset[Version]] = {}

    def asked(self, package: str, version: str) -> Iterator[tuple[PinRow, tuple[str, str]]]:
        """The rows of that release, and each package and comparison that it asks for."""
        for row in self.rows.get(package, ()):
            if contains(row.releases, version) and not (row.mild and Version(version).local):
                yield from ((row, found) for found in _parsed(row.requires))

    def wanted(self, package: str, version: str) -> Mapping[str, str]:
        """All comparisons for each package that the release asks for."""
        if (package, version) not in self._wanted:
            found: dict[str, list[str]] = defaultdict(list)
            for _, (required, comparisons) in self.asked(package, version):
                found[required].append(comparisons)
            tidied = {required: tidy(",".join(parts)) for required, parts in found.items()}
            self._wanted[package, version] = tidied
        return self._wanted[package, version]

    def releases(self, package: str) -> frozenset[Version]:
        """Releases that exist: those with which a row of METADATA begins."""
        if package not in self._releases:
            rows = (row for row in self.rows.get(package, ()) if row.why is None)
            self._releases[package] = frozenset(
                Version(next(spec.version for spec in SpecifierSet(row.releases) if spec.operator == ">="))
                for row in rows
            )
        return self._releases[package]


_KNOWN: list[tuple[Sequence[PinRow], _Pins]] = []
"""The last table that was asked, by identity: a test may judge by another."""


def _pins_of(tables: Tables) -> _Pins:
    if not _KNOWN or _KNOWN[0][0] is not tables.pins:
        _KNOWN[:] = [(tables.pins, _Pins(tables.pins))]
    return _KNOWN[0][1]


def _is_near(required: str, comparisons: str, installed: str) -> bool:
    exact = comparisons.startswith("==") and "," not in comparisons
    return exact and required not in LINKED and same_minor(comparisons.removeprefix("=="), installed)


def _bound(part: str) -> Version:
    return Version(part.lstrip("<>=").removesuffix(".*"))


@functools.lru_cache(maxsize=512)
def _parsed(requires: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((found.name, str(found.specifier)) for found in map(Requirement, requires))
