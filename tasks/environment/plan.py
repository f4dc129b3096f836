"""What the environment stage decides: what a lock is, who requires whom, and the verdict. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Protocol
from urllib.parse import urlsplit

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.core.errors import SpecError, WrongUseError
from tasks.core.verdicts import EnvironmentVerdict
from tasks.engines.base import Engine, SystemLibrary
from tasks.environment.models import (
    Conflict,
    Dependency,
    Distribution,
    EnvironmentRequest,
    Inventory,
    LockRequest,
    Proof,
)

DEPTH = 3
"""How far up the conflict report follows who requires whom."""

_HEADER = "# slipway-lock: "
_HASH = re.compile(r"\s--hash=\S+")


class Machine(Protocol):
    """What of a machine decides a lock."""

    @property
    def platform(self) -> str:
        """What locks of this machine are for."""

    def lacks(self, soname: str) -> bool:
        """Whether there is no shared library of that name."""


def lock_request(engine: Engine, request: EnvironmentRequest, machine: Machine) -> LockRequest:
    """What names the lock of this environment. Raises `SpecError` for what is no PEP 508 requirement."""
    brought = tuple(
        library for library in engine.system_libraries if library.wheel and machine.lacks(library.soname)
    )
    return make_lock_request(
        (*engine.requirements, *request.requirements),
        request.python,
        machine.platform,
        exclude_newer=request.exclude_newer,
        libraries=brought,
    )


def make_lock_request(
    requirements: Iterable[str],
    python: str,
    platform: str,
    *,
    exclude_newer: str | None = None,
    libraries: tuple[SystemLibrary, ...] = (),
) -> LockRequest:
    """The same request for the same requirements, whatever their order and spelling. Raises `SpecError`."""
    wheels = [library.wheel for library in libraries if library.wheel]
    parsed = sorted({_canonical(line) for line in (*requirements, *wheels)})
    if not parsed:
        raise SpecError("there are no requirements to lock", fix="name at least one package")
    if not re.fullmatch(r"3\.\d+", python):
        raise SpecError(f"{python!r} is no Python version", fix="write it as 3.11")
    if exclude_newer is not None:
        _check_date(exclude_newer)
    return LockRequest(
        requirements=tuple(parsed),
        python=python,
        platform=platform,
        exclude_newer=exclude_newer,
        libraries=libraries,
    )


def parse_requirements(text: str, source: str) -> tuple[str, ...]:
    """Requirements of a file, one a line, comments dropped. Raises `SpecError` that names the line."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        bare = re.sub(r"(^|\s)#.*$", "", line).strip()
        if not bare:
            continue
        try:
            found.append(_canonical(bare))
        except SpecError as error:
            raise SpecError(f"{source}, line {number}: {error.what}", fix=error.fix) from None
    return tuple(found)


def _canonical(line: str) -> str:
    try:
        requirement = Requirement(line)
    except InvalidRequirement as error:
        why = str(error).splitlines()[0].rstrip(".:")
        raise SpecError(
            f"{line!r} is not a requirement: {why}", fix="write it as PEP 508 says, for example numpy>=2,<3"
        ) from None
    if requirement.url and "@" in urlsplit(requirement.url).netloc:
        raise SpecError(
            f"the address of {requirement.name} holds credentials", fix="keep them in a netrc file instead"
        )
    requirement.name = canonicalize_name(requirement.name)
    return str(requirement)


def _check_date(value: str) -> None:
    try:
        datetime.fromisoformat(value)
    except ValueError:
        raise SpecError(
            f"exclude_newer: {value!r} is no date", fix="write it as 2026-01-31 or 2026-01-31T12:00:00Z"
        ) from None


class LockFile(BaseModel):
    """A lock's content: what was asked for, where it says so, and the packages it pins."""

    model_config = ConfigDict(frozen=True)

    request: LockRequest | None
    packages: dict[str, str]


def render_lock(request: LockRequest, resolved: str) -> str:
    """The lock file: a first line that says what was asked for, then the resolver's pins with hashes."""
    return f"{_HEADER}{json.dumps(request.model_dump(mode='json'), sort_keys=True)}\n{resolved.rstrip()}\n"


def read_lock(text: str, source: str) -> LockFile:
    """Parse a hash lock. Raises `WrongUseError` for one that does not pin each package with a hash."""
    request: LockRequest | None = None
    packages: dict[str, str] = {}
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith(_HEADER):
            request = _read_header(line.removeprefix(_HEADER), source)
        bare = re.sub(r"(^|\s)#.*$", "", line).strip()
        if bare:
            name, version = _read_pin(bare, source)
            packages[name] = version
    if not packages:
        raise WrongUseError(f"{source} pins no package", fix="make a lock: slipway env lock")
    return LockFile(request=request, packages=packages)


def _read_header(text: str, source: str) -> LockRequest:
    try:
        return LockRequest.model_validate_json(text)
    except ValidationError:
        raise WrongUseError(f"{source}: its first line is damaged", fix="make the lock again") from None


def _read_pin(line: str, source: str) -> tuple[str, str]:
    bare, hashes = _HASH.subn("", line)
    not_a_pin = WrongUseError(
        f"{source} is not a hash lock: {bare.strip()[:80]!r} is not pinned with a hash",
        fix="make one: slipway env lock",
    )
    try:
        requirement = Requirement(bare.strip())
    except InvalidRequirement:
        raise not_a_pin from None
    pins = list(requirement.specifier)
    version = _wheel_version(requirement.url) if requirement.url else None
    if version is None and len(pins) == 1 and pins[0].operator == "==" and "*" not in pins[0].version:
        version = pins[0].version
    if not hashes or version is None:
        raise not_a_pin
    return canonicalize_name(requirement.name), version


def _wheel_version(url: str) -> str | None:
    try:
        return str(parse_wheel_filename(urlsplit(url).path.rpartition("/")[2])[1])
    except InvalidWheelFilename:
        return None


def dependencies(inventory: Inventory) -> tuple[Dependency, ...]:
    """Who requires whom in this installed set: requirements whose markers hold, extras that someone asked for
    included."""
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


def attribute(conflicts: Sequence[Conflict], engine: Engine) -> tuple[Conflict, ...]:
    """The same conflicts, with the engine named where it, not the user, asked."""
    own = {_canonical(line) for line in engine.requirements}
    return tuple(
        one.model_copy(update={"required_by": str(engine.kind)})
        if one.required_by is None and one.requirement and _is_one_of(one.requirement, own)
        else one
        for one in conflicts
    )


def _is_one_of(requirement: str, canonical: set[str]) -> bool:
    try:
        return _canonical(requirement) in canonical
    except SpecError:
        return False  # the resolver's words are not always a requirement


def _active(found: Distribution, extras: set[str], markers: Mapping[str, str]) -> Iterable[Requirement]:
    for text in found.requires:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue  # old metadata that no installer reads either
        if requirement.marker is None or any(
            requirement.marker.evaluate({**markers, "extra": extra}) for extra in extras
        ):
            yield requirement


def dependents(
    edges: Sequence[Dependency], package: str, depth: int = DEPTH
) -> tuple[tuple[int, Dependency], ...]:
    """Who requires `package`, then who requires those: level (from 1) and edge, nearest first."""
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
    """Modules to import where no engine says which: those of distributions that nothing else requires."""
    required = {edge.package for edge in edges}
    modules: list[str] = []
    for found in inventory.distributions:
        name = canonicalize_name(found.name)
        if name not in required:
            same = [module for module in found.modules if canonicalize_name(module) == name]
            modules += same or [module for module in found.modules if not module.startswith("_")]
    return tuple(dict.fromkeys(modules))


def judge(conflicts: Sequence[Conflict], proof: Proof) -> tuple[EnvironmentVerdict, str | None]:
    """The verdict and its reason. What does not import or start is not sound, whatever the metadata says;
    complaints about metadata alone only flag a set that works."""
    if proof.failure:
        return EnvironmentVerdict.CONFLICTING, proof.failure
    if conflicts:
        more = f" (and {len(conflicts) - 1} more)" if len(conflicts) > 1 else ""
        return EnvironmentVerdict.FLAGGED, describe(conflicts[0]) + more
    return EnvironmentVerdict.SOUND, None


def describe(conflict: Conflict) -> str:
    """A conflict in one line: who asks for what, and what is there."""
    if conflict.reason:
        return conflict.reason
    who = f"{conflict.required_by} requires" if conflict.required_by else "you require"
    there = f"{conflict.package} {conflict.installed} is" if conflict.installed else "it is not"
    wanted = conflict.requirement or conflict.package
    return f"{who} {wanted}, but {there} installed"


def reverse_listing(
    edges: Sequence[Dependency], packages: Mapping[str, str]
) -> dict[str, list[dict[str, str | int]]]:
    """Every package with its dependents up to `DEPTH` levels, as programs read it."""
    return {
        name: [
            {"level": level, "required_by": edge.required_by, "requirement": edge.requirement}
            for level, edge in dependents(edges, name)
        ]
        for name in sorted(packages)
    }
