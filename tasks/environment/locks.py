"""The file of a lock: a line that says what was asked for, then pins with hashes. Pure."""

from __future__ import annotations

import json
import re
from urllib.parse import urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.core.errors import WrongUseError
from tasks.environment.models import LockRequest

_HEADER = "# slipway-lock: "
_HASH = re.compile(r"\s--hash=\S+")


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
