"""The keys of a service: what a spec may name, what a secret may contain, and their digests. Pure."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from tasks.core.errors import SpecError
from tasks.core.given_files import check_path
from tasks.core.sources import FILE

BLOCK = "block:"
FORM = f"{FILE}PATH or {BLOCK}NAME"
LIMIT_BYTES = 64_000
"""Largest secret that is read."""

MOST_KEYS = 1000
SHORTEST_KEY, LONGEST_KEY = 8, 512
"""Characters. Slipway cannot redact a shorter one."""

_BLOCK_NAME = re.compile(r"[a-z0-9-]{1,100}")
_KEY = re.compile(r"[!-+\--~]+")
_MAKE_ONE = "make one: openssl rand -hex 32"


def check_reference(value: str) -> str:
    """`value`, if it names a secret. Raises `ValueError`, without the value: it may be the key itself."""
    if value.startswith(FILE):
        check_path(value.removeprefix(FILE))
        return value
    if value.startswith(BLOCK) and _BLOCK_NAME.fullmatch(value.removeprefix(BLOCK)):
        return value
    raise ValueError(f"must be {FORM}, which names the secret; never the key itself")


def key_file(reference: str | None) -> Path | None:
    """The file that a reference names; None if it names none."""
    return Path(reference.removeprefix(FILE)) if reference and reference.startswith(FILE) else None


def block_name(reference: str | None) -> str | None:
    """The Prefect block that a reference names; None if it names none."""
    return reference.removeprefix(BLOCK) if reference and reference.startswith(BLOCK) else None


def parse_keys(text: str, name: str) -> tuple[str, ...]:
    """The keys in a secret called `name`: one a line, without empty lines and comments.

    Raises `SpecError` that names the line, never its content.
    """
    keys: dict[str, None] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        key = line.strip()
        if not key or key.startswith("#"):
            continue
        if not _KEY.fullmatch(key):
            raise SpecError(
                f"line {number} of {name} is not a key: it contains a space or a comma, or is not ASCII",
                fix=_MAKE_ONE,
            )
        if not SHORTEST_KEY <= len(key) <= LONGEST_KEY:
            raise SpecError(
                f"the key in line {number} of {name} has {len(key)} characters, which must be {SHORTEST_KEY} "
                f"to {LONGEST_KEY}",
                fix=_MAKE_ONE,
            )
        keys[key] = None
    if not keys:
        raise SpecError(f"{name} contains no key", fix=f"write one key a line; {_MAKE_ONE}")
    if len(keys) > MOST_KEYS:
        raise SpecError(f"{name} contains {len(keys)} keys", fix=f"keep {MOST_KEYS} at most")
    return tuple(keys)


def digest_of_key(key: str) -> str:
    """What the proxy compares: SHA-256, in hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()
