"""Errors of the operating system about a file or its disk, as faults that name both and the way out."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

from tasks.core.errors import DiskError, DiskFullError, SlipwayError

_FULL = re.compile(
    r"[Nn]o space left (?:on device|to write)|Disk quota exceeded|(?:os error|Errno) (?:28|122)\b"
)
_NUMBERED = re.compile(r"(?:os error|\[Errno) (\d+)\b")
_OF_DISKS = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE,
)  # fmt: skip

_OF_WHOLE_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_IN_THE_WAY = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP)


def disk_fault(error: OSError, path: Path | None = None) -> SlipwayError | None:
    """The fault behind `error`; None for an error that is not about a file or its disk.

    `path` is what was read or written, for errors that do not name it themselves.
    """
    named = _path_of(error.filename) if isinstance(error.filename, str | bytes) else None
    place = (named or path or Path.cwd()).absolute()
    match error.errno:
        case errno.ENOSPC:
            return _full(place, "no space left to write")
        case errno.EDQUOT:
            return _full(place, "this user's quota leaves no space to write")
        case errno.EROFS:
            return DiskError(
                f"{place} is on a disk that is mounted read-only",
                fix=f"mount the disk of {_folder_of(place)} writable, or set SLIPWAY_HOME to a folder on another",
            )
        case errno.EACCES | errno.EPERM:
            return _denied(place)
        case errno.ENAMETOOLONG:
            return DiskError(
                f"the file system does not allow a name as long as {place.name[:40]}…",
                fix="choose a shorter name",
            )
        case errno.EIO:
            return DiskError(
                f"the disk of {_folder_of(place)} is failing: input/output error at {place}",
                fix="check the kernel's log (dmesg), and set SLIPWAY_HOME to a folder on another disk",
            )
        case errno.ESTALE:
            return DiskError(
                f"the network disk of {place} is gone (stale file handle)",
                fix="mount it again, then run the command again",
            )
        case number if number in _IN_THE_WAY:
            return _in_the_way(place)
        case _:
            return None


def unforeseen_fault(error: OSError, home: Path) -> SlipwayError | None:
    """The same for an error from anywhere; None if that would be a guess.

    An error that names no file may be about the home's disk rather than the home itself: moving the home away would
    move every service's files. Neither may the user be told to move anything outside the home.
    """
    if not isinstance(error.filename, str | bytes):
        return disk_fault(error, home) if error.errno in _OF_WHOLE_DISKS else None
    if error.errno in _IN_THE_WAY and home not in _path_of(error.filename).parents:
        return None
    return disk_fault(error)


def _path_of(name: str | bytes) -> Path:
    return Path(os.fsdecode(name)).absolute()


def as_disk_fault(error: OSError, path: Path) -> Exception:
    """The fault behind `error`, or `error` itself if it is not about a file or its disk."""
    return disk_fault(error, path) or error


def fault_told(text: str, path: Path) -> SlipwayError | None:
    """The disk fault that killed a program, judged by the last lines that it printed; `path` is what it wrote."""
    if says_disk_full(text):
        return disk_fault(OSError(errno.ENOSPC, ""), path)
    numbers = [int(number) for number in _NUMBERED.findall(text)]
    return disk_fault(OSError(numbers[-1], ""), path) if numbers and numbers[-1] in _OF_DISKS else None


def says_disk_full(text: str) -> bool:
    """Whether a program's output says that a disk is full."""
    return _FULL.search(text) is not None


def _full(place: Path, what: str) -> DiskFullError:
    folder = _folder_of(place)
    try:
        free = f" ({shutil.disk_usage(folder).free / 1e6:.1f} MB free)"
    except OSError:
        free = ""
    return DiskFullError(
        f"{what} {place}{free}",
        fix=f"free space on the disk of {folder}, or set SLIPWAY_HOME to a larger one",
    )


def _denied(place: Path) -> DiskError:
    guilty = _denier(place)
    try:
        owner = guilty.stat().st_uid
    except OSError:
        owner = os.geteuid()
    foreign = owner != os.geteuid()
    whose = f", which belongs to user {owner}" if foreign else ""
    other = f"run this as user {owner}, " if foreign else ""
    return DiskError(
        f"user {os.geteuid()} may not use {place}: denied by {guilty}{whose}",
        fix=f"{other}give this user access to {guilty}, or set SLIPWAY_HOME to a folder of its own",
    )


def _denier(place: Path) -> Path:
    """The first folder on the path that does not let this user through; else the file, or its folder."""
    for folder in (*reversed(place.parents), *reversed(Path(os.path.realpath(place)).parents)):
        if not _may(folder, os.X_OK):
            return folder
    return (
        place if os.path.lexists(place) and not _may(place, os.R_OK | os.W_OK) else _folder_of(place.parent)
    )


def _may(place: Path, what: int) -> bool:
    return os.access(place, what, effective_ids=True)


def _in_the_way(place: Path) -> DiskError:
    """A folder in place of a file, or a file in place of a folder."""
    file = next((one for one in reversed(place.parents) if os.path.lexists(one) and not one.is_dir()), place)
    kind = "folder" if file.is_dir() else "file"
    return DiskError(f"{file} is a {kind}, and is in the way", fix=f"move it away: mv {file} {file}.damaged")


def _folder_of(place: Path) -> Path:
    """The nearest folder that can be read."""
    for one in (place, *place.parents):
        try:
            if one.is_dir():
                return one
        except OSError:
            continue
    return Path("/")
