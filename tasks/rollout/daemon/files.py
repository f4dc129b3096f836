"""The supervisor's own files: written whole, and put back when they are lost or something else is in their place."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
import time
from pathlib import Path

DAMAGED = "damaged"
"""Folder of what was damaged or in the way; the newest of each name is kept."""

_GOAL_IS_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR)
_TRIES = 10


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file such that a crash leaves the old or the new content."""
    part = part_of(path)
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def part_of(path: Path) -> Path:
    """Where a file is while it is written."""
    return path.with_name(path.name + ".part")


def clear_place(path: Path, service: Path) -> None:
    """Move away a folder that is where a file belongs. Raises `OSError`."""
    if path.is_dir() and not path.is_symlink():
        set_aside(path, service)


def set_aside(path: Path, service: Path) -> None:
    """Move what is damaged to the service's folder for that. Raises `OSError`.

    A supervisor and a command may find the same damage at the same time: the second has nothing left to do.
    """
    if (service / DAMAGED).exists() and not (service / DAMAGED).is_dir():
        (service / DAMAGED).unlink()
    (service / DAMAGED).mkdir(exist_ok=True)
    goal = service / DAMAGED / "-".join(path.relative_to(service).parts)
    for _ in range(_TRIES):
        _remove(goal)  # no folder replaces a file
        try:
            path.replace(goal)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in _GOAL_IS_TAKEN:
                raise
        else:
            return


def _remove(goal: Path) -> None:
    """Under another name first: while a folder is emptied, something else may be put into it."""
    if not os.path.lexists(goal):
        return
    with (
        tempfile.TemporaryDirectory(dir=goal.parent, ignore_cleanup_errors=True) as old,
        contextlib.suppress(FileNotFoundError),
    ):
        goal.replace(Path(old) / goal.name)


class Lock:
    """The lock that says a supervisor lives: held until this process ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: int | None = None

    def take(self, timeout_s: float) -> bool:
        """Be the only supervisor of the service; the one before may need a moment to end. Raises `OSError`."""
        deadline = time.monotonic() + timeout_s
        while not self._try():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def renew(self) -> None:
        """Hold a lock of that name again, if the file was removed or replaced. Raises `OSError`."""
        if self._handle is not None and _is_at(self._handle, self._path):
            return
        before, self._handle = self._handle, None
        if not self._try():
            self._handle = before
        elif before is not None:
            os.close(before)

    def _try(self) -> bool:
        clear_place(self._path, self._path.parent)
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        self._handle = handle
        return True


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False
