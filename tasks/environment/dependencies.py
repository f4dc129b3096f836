"""What requires what in an installed set. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from tasks.environment.models import Dependency, Distribution, Inventory

DEPTH = 3
"""How many levels of dependents the conflict report shows."""


def dependencies(inventory: Inventory) -> tuple[Dependency, ...]:
    """What requires what in this installed set: requirements whose markers hold, including extras that a package
    requests."""
    markers = {key: str(value) for key, value in default_environment().items()} | inventory.markers
    names: dict[str, Distribution] = {
        canonicalize_name(found.name): found for found in inventory.distributions
    }
    extras: dict[str, set[str]] = {name: {""} for name in names}
    edges: set[tuple[str, str, str]] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        for requirement in _active(names[name], extras[name], markers):
            wanted = str(canonicalize_name(requirement.name))
            edges.add((wanted, name, f"{requirement.name}{requirement.specifier}"))
            if wanted in names and not requirement.extras <= extras[wanted]:
                extras[wanted] |= requirement.extras
                waiting.append(wanted)  # the extra may add edges where there were none
    return tuple(
        Dependency(package=wanted, required_by=by, requirement=text) for wanted, by, text in sorted(edges)
    )


def _active(found: Distribution, extras: set[str], markers: Mapping[str, str]) -> Iterable[Requirement]:
    for text in found.requires:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue  # old metadata that installers do not read either
        if requirement.marker is None or any(
            requirement.marker.evaluate({**markers, "extra": extra}) for extra in extras
        ):
            yield requirement


def dependents(
    edges: Sequence[Dependency], package: str, depth: int = DEPTH
) -> tuple[tuple[int, Dependency], ...]:
    """What requires `package`, then what requires that: level (from 1) and edge, nearest first."""
    found: list[tuple[int, Dependency]] = []
    seen: set[str] = {canonicalize_name(package)}
    front = seen
    for level in range(1, depth + 1):
        here = [edge for edge in edges if edge.package in front]
        found += [(level, edge) for edge in here]
        front = {edge.required_by for edge in here} - seen
        seen = seen | front
    return tuple(found)


def roots(inventory: Inventory, edges: Sequence[Dependency]) -> tuple[str, ...]:
    """Modules to import if no engine names any: those of distributions that nothing else requires."""
    required = {edge.package for edge in edges}
    modules: list[str] = []
    for found in inventory.distributions:
        name = canonicalize_name(found.name)
        if name not in required:
            same = [module for module in found.modules if canonicalize_name(module) == name]
            modules += same or [module for module in found.modules if not module.startswith("_")]
    return tuple(dict.fromkeys(modules))


def reverse_listing(
    edges: Sequence[Dependency], packages: Mapping[str, str]
) -> dict[str, list[dict[str, str | int]]]:
    """Every package with its dependents up to `DEPTH` levels, for JSON."""
    return {
        name: [
            {"level": level, "required_by": edge.required_by, "requirement": edge.requirement}
            for level, edge in dependents(edges, name)
        ]
        for name in sorted(packages)
    }
