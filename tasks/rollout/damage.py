"""Find damaged files in a service's folder and move them away, so that every command can continue without them.

A file is damaged if what reads it could not: a document that is empty, cut off or not JSON, a folder in a file's
place, a file in a folder's. What is damaged moves to `damaged/` and is never read again; what was running goes on,
and the caller rewrites what is needed. Call it while holding the service's lease.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import BaseModel, ValidationError

from tasks.core.files import fsync_folder, write_atomically
from tasks.core.progress import say
from tasks.core.release import ServiceFolder, ServiceState
from tasks.core.verdicts import StageName
from tasks.rollout.daemon.files import DAMAGED, set_aside

Check = Callable[[Path], str | None]
"""What is wrong with a file that exists; None if it is sound."""


def set_damage_aside(folder: ServiceFolder) -> tuple[Path, ...]:
    """Move damaged files out of the service's folder and report each; returns the paths where they were.

    A damaged `current.json` is replaced by its copy, if that is sound; a copy that is missing is made, which homes
    of earlier versions have none of. Raises `OSError`.
    """
    found = []
    for path, fault in _find(folder):
        set_aside(path, folder.root)
        fsync_folder(path.parent)
        say(StageName.ROLLOUT, f"{path} {fault}: it is set aside in {folder.root / DAMAGED}")
        found.append(path)
    if folder.state_file in found and folder.last_file.exists():
        write_atomically(folder.state_file, folder.last_file.read_bytes())
    elif _lacks_copy(folder):
        write_atomically(folder.last_file, folder.state_file.read_bytes())
    return tuple(found)


def needs_repair(folder: ServiceFolder) -> bool:
    """Whether `set_damage_aside` would change anything. Needs no lease."""
    return _lacks_copy(folder) or next(_find(folder), None) is not None


def _lacks_copy(folder: ServiceFolder) -> bool:
    return folder.state_file.exists() and not folder.last_file.exists()


def _find(folder: ServiceFolder) -> Iterator[tuple[Path, str]]:
    for pattern, check in _KINDS.items():
        for path in sorted(folder.root.glob(pattern)):
            if fault := check(path):
                yield path, fault


def _folder(path: Path) -> str | None:
    return None if path.is_dir() else "is not a folder"


def _file(path: Path) -> str | None:
    return None if stat.S_ISREG(path.lstat().st_mode) else "is not a file"


def _socket(path: Path) -> str | None:
    return None if stat.S_ISSOCK(path.lstat().st_mode) else "is not a socket"


def _json(*keys: str) -> Check:
    """A JSON object with these keys. One of another version of Slipway stays, and is refused by name."""

    def check(path: Path) -> str | None:
        if fault := _file(path):
            return fault
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return "is damaged"
        return None if isinstance(content, dict) and set(keys) <= set(content) else "is damaged"

    return check


def _document(model: type[BaseModel]) -> Check:
    def check(path: Path) -> str | None:
        if fault := _file(path):
            return fault
        try:
            model.model_validate_json(path.read_bytes())
        except ValidationError:
            return "is damaged, or of another version of Slipway"
        return None

    return check


def _name_of_a_folder(path: Path) -> str | None:
    """`proxy/current` names the proxy that serves."""
    if fault := _file(path):
        return fault
    try:
        name = path.read_text()
        return None if name and Path(name).name == name and (path.parent / name).is_dir() else "is damaged"
    except (OSError, ValueError):  # longer than a name may be, say
        return "is damaged"


_KINDS: dict[str, Check] = {
    # Folders first: if a file is in a folder's place, there is nothing below it to check.
    "releases": _folder,
    "logs": _folder,
    "samples": _folder,
    "proxy": _folder,
    "current.json": _document(ServiceState),
    "last.json": _document(ServiceState),
    "releases/*.json": _json("schema", "spec", "environment_path", "model_digest"),
    "supervisor.json": _json("release", "argv", "env", "host", "port", "restarts", "since"),
    "supervisor.lock": _file,
    "control.sock": _socket,
    "processes.json": _json("kind", "period_s"),
    "recovery.json": _json(),
    "logs/*": _file,
    "samples/*": _file,
    "proxy/current": _name_of_a_folder,
    "proxy/*/route.json": _json("host", "port"),
    "proxy/*/haproxy.cfg": _file,
    "proxy/*/haproxy.pid": _file,
    "proxy/*/admin.sock": _socket,
}
"""What is in a service's folder, and how each of these is checked."""
