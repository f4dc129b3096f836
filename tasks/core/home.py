"""`SLIPWAY_HOME`, which only its owner may read (docs/adr/0080).

It contains the key to the local API, Prefect's database, logs and prompts. A home that is shared with other users, or
used for other things, keeps its permissions; confidential folders in it are closed nevertheless.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from tasks.core.files import PART, make_folder

PRIVATE_FOLDER = 0o700
PRIVATE_FILE = 0o600
_OTHERS = 0o077

ALLOWED = "allowed.toml"
"""The administrator's list (`tasks/core/allowed.py`)."""

CONFIDENTIAL = ("prefect", "logs")
"""Folders of the home that no other user may read, whatever the home's own permissions."""

_OWN_ENTRIES = {
    *(
        ALLOWED,
        "candidates",
        "chat_templates",
        "daemon",
        "environments",
        "faults",
        "images",
        "leases",
        "local.json",
        "locks",
    ),
    *("logs", "models", "prefect", "records", "registry", "scripts", "services", "tables"),
}
"""What homes contain that were made before homes were closed. A folder with anything else may be a user's `/srv`."""


def make_home(home: Path) -> bool:
    """Create `home` if needed and close it to other users; whether an existing one had been open.

    Raises what `make_folder` raises.
    """
    return close_home(home) if not make_folder(home, mode=PRIVATE_FOLDER) else False


def close_home(home: Path) -> bool:
    """Close an existing home, and confidential folders in it, to other users; whether it had been open.

    Does nothing if the folder belongs to another user, or cannot be changed (a read-only disk).
    """
    with contextlib.suppress(OSError):
        closed = _is_slipways_alone(home) and close_folder(home)
        for name in CONFIDENTIAL:
            with contextlib.suppress(FileNotFoundError):
                close_folder(home / name)
        return closed
    return False


def make_private_folder(folder: Path) -> None:
    """Create `folder`, which no other user may read. Raises what `make_folder` raises."""
    if not make_folder(folder, mode=PRIVATE_FOLDER):
        close_folder(folder)


def close_folder(folder: Path) -> bool:
    """Remove other users' permissions on a folder of this user; whether there were any. Raises `OSError`."""
    found = folder.stat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or not found.st_mode & _OTHERS:
        return False
    folder.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)
    return True


def _is_slipways_alone(home: Path) -> bool:
    """Whether closing it would lock other users out of their own files, as with `/tmp` or a data disk."""
    shared = home.stat().st_mode & (stat.S_ISVTX | stat.S_ISGID)
    names = {entry.name for entry in home.iterdir() if not entry.name.endswith(PART)}
    return not shared and names <= _OWN_ENTRIES
