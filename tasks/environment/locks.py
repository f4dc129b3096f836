"""The file of a lock: a line that says what was asked for, then pins with hashes. Pure.

For uv it is a requirements file, for conda a lock file of rattler (the format of pixi), and for an environment that
exists already a list of pins without hashes, because Slipway installs nothing into it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.core.digests import digest_of
from tasks.core.errors import WrongUseError
from tasks.core.pins import file_name, wheel_version
from tasks.core.spec_kinds import EnvironmentManager
from tasks.environment.models import LockRequest

_HEADER = "# slipway-lock/2: "
_OLD_HEADER = "# slipway-lock: "
"""Locks that were made before they were sealed."""
_SEAL = "# slipway-seal: "
_HASH = re.compile(r"\s--hash=(sha(?:256|384|512):[0-9a-f]+)(?!\S)")
_VIA = re.compile(r"^\s+#\s+(?:via\s+)?(?!via\s*$)(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)\s*$")
"""uv names the packages that require a pin in comments below it, one per line."""


class Pin(BaseModel):
    """One package of a lock. `hashes` are `sha256:…`, one of which its file must have; `required_by` names
    the packages that require it, as far as the lock says so; `url` is where conda's packages come from."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str
    hashes: tuple[str, ...] = ()
    required_by: tuple[str, ...] = ()
    url: str | None = None


class LockFile(BaseModel):
    """A lock's content: the packages that it pins, and the request, if it names one."""

    model_config = ConfigDict(frozen=True)

    request: LockRequest | None
    pins: tuple[Pin, ...]

    @property
    def packages(self) -> dict[str, str]:
        """Version by name."""
        return {pin.name: pin.version for pin in self.pins}


def render_lock(request: LockRequest, resolved: str) -> str:
    """The lock file: a first line with the request, the resolver's pins with hashes, and a last line that seals both,
    because a truncated lock would look like a lock of fewer packages."""
    text = f"{_HEADER}{json.dumps(request.model_dump(mode='json'), sort_keys=True)}\n{resolved.rstrip()}\n"
    return f"{text}{_SEAL}{digest_of(text)}\n"


def read_lock(text: str, source: str) -> LockFile:
    """Parse a lock. Raises `WrongUseError` for one that does not pin each package with a hash."""
    first, _, _ = text.partition("\n")
    if first.startswith(_HEADER):
        _check_seal(text, source)
    header = next((header for header in (_HEADER, _OLD_HEADER) if first.startswith(header)), None)
    request = _read_header(first.removeprefix(header), source) if header else None
    manager = request.manager if request else EnvironmentManager.UV
    pins = (
        _read_conda(text, source)
        if manager is EnvironmentManager.CONDA
        else _read_pins(text, source, manager)
    )
    if not pins:
        raise WrongUseError(f"{source} pins no packages", fix="make a lock: slipway env lock")
    return LockFile(request=request, pins=pins)


def _check_seal(text: str, source: str) -> None:
    body, _, seal = text.rpartition(_SEAL)
    if seal != f"{digest_of(body)}\n":
        raise WrongUseError(
            f"{source} is damaged: its seal does not match", fix="make the lock again: slipway env lock"
        )


def _read_pins(text: str, source: str, manager: EnvironmentManager) -> tuple[Pin, ...]:
    """Lines of a requirements file; comments below each name the packages that require it (`via`)."""
    pins: dict[str, Pin] = {}
    last = ""
    for line in text.replace("\\\n", " ").splitlines():
        bare = re.sub(r"(^|\s)#.*$", "", line).strip()
        if bare:
            pin = _read_pin(bare, source, hashed=manager is not EnvironmentManager.SYSTEM)
            pins[pin.name], last = pin, pin.name
        elif last and (match := _VIA.match(line)):
            asker = match["name"]
            required_by = (*pins[last].required_by, canonicalize_name(asker))
            pins[last] = pins[last].model_copy(update={"required_by": required_by})
    return tuple(pins.values())


def _read_conda(text: str, source: str) -> tuple[Pin, ...]:
    """The `packages` of a rattler lock; a package's file name contains name and version."""
    damaged = WrongUseError(f"{source} is not a lock of conda packages", fix="make a lock: slipway env lock")
    try:
        # Read every scalar as text: a hash may consist of digits only.
        document = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError):
        raise damaged from None
    packages = document.get("packages") if isinstance(document, Mapping) else None
    if not isinstance(packages, list) or not all(isinstance(package, Mapping) for package in packages):
        raise damaged
    return tuple(_conda_pin(package, source) for package in packages)


def _conda_pin(package: Mapping[str, Any], source: str) -> Pin:
    url, digest = package.get("conda"), package.get("sha256")
    file = file_name(str(url))
    pieces = re.sub(r"(\.conda|\.tar\.bz2)$", "", file).rsplit("-", 2)
    if not isinstance(digest, str) or len(pieces) != 3:
        raise WrongUseError(
            f"{source} is not a hash lock: {str(url)[:80]!r} is not pinned with a hash",
            fix="make one: slipway env lock",
        )
    return Pin(name=pieces[0], version=pieces[1], hashes=(f"sha256:{digest}",), url=str(url))


def _read_header(text: str, source: str) -> LockRequest:
    try:
        return LockRequest.model_validate_json(text)
    except ValidationError:
        raise WrongUseError(f"{source}: its first line is damaged", fix="make the lock again") from None


def _read_pin(line: str, source: str, *, hashed: bool) -> Pin:
    hashes = tuple(_HASH.findall(line))
    bare = _HASH.sub("", line)
    not_a_pin = WrongUseError(
        f"{source} is not a hash lock: {bare.strip()[:80]!r} is not pinned with a hash",
        fix="make one: slipway env lock",
    )
    try:
        requirement = Requirement(bare.strip())
    except InvalidRequirement:
        raise not_a_pin from None
    pins = list(requirement.specifier)
    version = wheel_version(requirement.url) if requirement.url else None
    if version is None and len(pins) == 1 and pins[0].operator == "==" and "*" not in pins[0].version:
        version = pins[0].version
    if (hashed and not hashes) or version is None:
        raise not_a_pin
    return Pin(name=canonicalize_name(requirement.name), version=version, hashes=hashes)
