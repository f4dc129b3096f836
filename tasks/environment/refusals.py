"""Why a resolver refused, as who asks for what: the shortest chains to what cannot be had together. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import combinations

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from tasks.core.spec_kinds import EngineKind
from tasks.core.versions import satisfying
from tasks.engines.card import read_card
from tasks.environment.models import Conflict, Loosening

_NO_WHEELS = re.compile(
    r"Wheels are required for `([^`]+)`|\b([A-Za-z0-9][A-Za-z0-9._-]*)==\S+ has no (?:usable )?wheels"
)
_PYTHONS = re.compile(r"Python ABI tag|Python version|Requires-Python|requested Python|current Python")
_OLDEST_PYTHON, _NEWEST_PYTHON = 10, 14
_OWN_WHEELS = {
    "flash-attn": "https://github.com/Dao-AILab/flash-attention/releases (by torch, CUDA and Python)"
}
"""Projects that publish wheels outside the index."""


def chains(demands: Sequence[Conflict]) -> tuple[tuple[str, ...], ...]:
    """The two shortest chains from the user's requirements to demands on one package that no version satisfies.
    Empty if there is no such pair: a package or a version does not exist.
    """
    reachable = [chain for demand in demands if (chain := _chain_to(demand, demands)) is not None]
    pairs = [
        (one, other)
        for one, other in combinations(reachable, 2)
        if _name(one[-1]) == _name(other[-1]) and _exclude_each_other(one[-1], other[-1])
    ]
    if not pairs:
        return ()
    return min(pairs, key=lambda pair: (len(pair[0]) + len(pair[1]), pair))


def format_chain(chain: Sequence[str]) -> str:
    """`you require transformers==4.40.0, which requires tokenizers<0.20,>=0.19`."""
    return "you require " + ", which requires ".join(chain)


def without_wheels(reason: str) -> tuple[str, ...]:
    """The packages that a resolver refused because no wheel of them can be installed."""
    names = (first or second for first, second in _NO_WHEELS.findall(reason))
    return tuple(dict.fromkeys(str(canonicalize_name(name)) for name in names))


def blames_python(reason: str) -> bool:
    """Whether the resolver says that the Python is in the way."""
    return _PYTHONS.search(reason) is not None


def source_only(package: str, python: str) -> str:
    """What to do about a package of which there is no wheel for this Python."""
    place = _OWN_WHEELS.get(package) or _index_of(package)
    where = (
        f"its project has wheels: {place}" if place else "build one (`pip wheel`), or take another release"
    )
    return (
        f"the index has no wheel of {package} for Python {python} on this platform, only its source, and Slipway "
        f"builds nothing: {where}; give the wheel in a folder with --wheels, or as `{package} @ ADDRESS`"
    )


def _index_of(package: str) -> str | None:
    """The index of an engine's makers, if the engine has no wheels elsewhere."""
    cards = map(read_card, EngineKind)
    index = next((card.index for card in cards if card.package == package and card.index), None)
    return f"{index} (an index: UV_EXTRA_INDEX_URL={index})" if index else None


def not_enough(line: str, package: str, conflict: Sequence[Sequence[str]], python: str) -> str:
    """Why another version of a requirement does not help: `numpy<2.0.0 is not enough, because …`."""
    asked = (chain[-1] for chain in conflict if _name(chain[-1]) == _name(line) and chain[-1] != line)
    return (
        f"{next(asked, f'another version than {line}')} is not enough, because {source_only(package, python)}"
    )


def other_pythons(python: str) -> tuple[str, ...]:
    """Other Python versions, the nearest first, older ones before newer ones."""
    minor = int(python.partition(".")[2])
    older = range(min(minor - 1, _NEWEST_PYTHON), _OLDEST_PYTHON - 1, -1)
    return tuple(f"3.{other}" for other in (*older, *range(minor + 1, _NEWEST_PYTHON + 1)))


def looser(line: str) -> Iterator[str]:
    """The requirement with newer versions allowed, if it was an exact pin, then with any version."""
    exact = _exact(line)
    for specifier in ([f">={exact}"] if exact else []) + [""]:
        requirement = Requirement(line)
        requirement.specifier = SpecifierSet(specifier)
        yield str(requirement)


def loosening(line: str, version: str) -> Loosening:
    """What became of a requirement, and whether it goes back over a major version."""
    exact = _exact(line)
    back = exact is not None and Version(version).major < Version(exact).major
    return Loosening(requirement=line, version=version, back_to_major=back)


def _exact(line: str) -> str | None:
    pins = list(Requirement(line).specifier)
    return (
        pins[0].version
        if len(pins) == 1 and pins[0].operator == "==" and "*" not in pins[0].version
        else None
    )


def _chain_to(demand: Conflict, demands: Sequence[Conflict]) -> tuple[str, ...] | None:
    """The shortest way from the user to a demand, its own requirement last; None if nothing leads to it."""
    front: list[tuple[Conflict, tuple[str, ...]]] = [(demand, (demand.requirement or demand.package,))]
    seen = {demand.package}
    while front:
        nearer: list[tuple[Conflict, tuple[str, ...]]] = []
        for here, chain in front:
            if here.required_by is None:
                return chain
            asker = _name(here.required_by)
            for other in demands:
                if other.package == asker and asker not in seen:
                    nearer.append((other, (other.requirement or other.package, *chain)))
        seen |= {found.package for found, _ in nearer}
        front = nearer
    return None


def _exclude_each_other(one: str, other: str) -> bool:
    try:
        return satisfying(Requirement(one).specifier, Requirement(other).specifier) is None
    except InvalidRequirement:
        return False  # the resolver's text is not always a requirement


def _name(requirement: str) -> str:
    try:
        return canonicalize_name(Requirement(requirement).name)
    except InvalidRequirement:
        return requirement
