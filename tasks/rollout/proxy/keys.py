"""Who a proxy lets in: the file with the digests of the keys, and the commands that replace them all at once.

Standard library only: a service's supervisor uses it too. Pure.
"""

from __future__ import annotations

import re
from typing import Any

FILE = "keys"
"""In the proxy's folder, and the name of its list in HAProxy."""

OPEN = "open"
"""The entry of a door without keys. An empty list lets nobody in, and without the file HAProxy does not start."""

Digests = tuple[str, ...] | None
"""SHA-256 of each key; None: everyone is let in."""

PREPARE = f"prepare acl {FILE}"

_DIGEST = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"New version created: (\d+)")


def are_digests(value: object) -> bool:
    """Whether that is a list of digests, or None."""
    return value is None or (
        isinstance(value, list | tuple)
        and all(isinstance(one, str) and _DIGEST.fullmatch(one) for one in value)
    )


def digests_in(document: dict[str, Any]) -> Digests:
    """The digests in a request or a state file.

    Raises `ValueError`: a list that cannot be read must not open the door.
    """
    digests = document.get("digests")
    if not are_digests(digests):
        raise ValueError("the digests of the keys")
    return None if digests is None else tuple(digests)


def keys_document(digests: Digests) -> str:
    """The content of `FILE`."""
    return "".join(f"{entry}\n" for entry in _entries(digests))


def is_locked(document: str) -> bool:
    """Whether a `FILE` with that content lets in only who has a key."""
    return OPEN not in document.splitlines()


def version_in(answer: str) -> int | None:
    """The number that HAProxy gives to the list that `PREPARE` begins; None if it has no such list."""
    found = _VERSION.search(answer)
    return int(found[1]) if found else None


def replace_keys(version: int, digests: Digests) -> str:
    """Commands that fill the list of that version and then put it in place of the one before."""
    added = [f"add acl @{version} {FILE} {entry}" for entry in _entries(digests)]
    return ";".join([*added, f"commit acl @{version} {FILE}"])


def _entries(digests: Digests) -> tuple[str, ...]:
    return (OPEN,) if digests is None else tuple(sorted(digests))
