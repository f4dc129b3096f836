"""Why a resolver refused, as who asks for what: the shortest chains to what cannot be had together. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from tasks.core.versions import satisfying
from tasks.environment.models import Conflict


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
