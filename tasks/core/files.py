"""Writes that a crash cannot leave half done (DESIGN 8): `.part`, fsync, rename, fsync of the folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from tasks.core.cancellation import current
from tasks.core.errors import BusyError, DiskFullError, ModelError, WrongUseError

PART = ".part"
PRIVATE = 0o600
"""Files of the home are for their owner alone."""
_LOCK_POLL_S = 0.05


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_regular(path: Path, most_bytes: int) -> bytes:
    """A small file whole, never waiting for what another process would write into a pipe.

    Raises `ModelError` for what is not a file or is larger than `most_bytes`, else `OSError`.
    """
    _check_regular(path, path.stat().st_mode)  # to open a device may already do something
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        _check_regular(path, os.fstat(handle).st_mode)
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ModelError(
            f"{path} has more than {most_bytes} bytes, the most that it may have", fix="look at what wrote it"
        )
    return content


def _check_regular(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise ModelError(f"{path} is a {kind_of(mode)}, not a file", fix="put the file itself there")


def kind_of(mode: int) -> str:
    """What a path that is not a regular file is, in a word."""
    kinds = {
        stat.S_IFIFO: "pipe",
        stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "device",
        stat.S_IFBLK: "device",
        stat.S_IFDIR: "folder",
    }
    return kinds.get(stat.S_IFMT(mode), "special file")


def make_folder(folder: Path, *, mode: int = 0o777) -> bool:
    """Have `folder` and those above it; whether it had to be made. `mode`, less the umask, is for `folder` alone.

    Raises `DiskFullError`, or `WrongUseError` for a path at which there can be no folder.
    """
    try:
        if folder.is_dir():
            return False
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
    except FileExistsError:
        raise WrongUseError(
            f"{folder} is there already, and is not a folder",
            fix="name a folder, or one that is not there yet",
        ) from None
    except OSError as error:
        full = as_disk_full(error, folder)
        if full is not error:
            raise full from error
        raise WrongUseError(
            f"{folder} cannot be made: {error.strerror}", fix="name another folder"
        ) from error
    return True


def open_private(path: Path, mode: Literal["wb", "ab"]) -> BinaryIO:
    """A file open for writing that only its owner can read, also where it was there already with other rights."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if mode == "wb" else os.O_APPEND)
    handle = os.open(path, flags, PRIVATE)
    with contextlib.suppress(PermissionError):  # another user's file that may be written all the same
        os.fchmod(handle, PRIVATE)
    return os.fdopen(handle, mode)


def write_atomically(path: Path, content: bytes | str, *, private: bool = True) -> None:
    """Replace `path` with `content`; readers see the old bytes or the new, never a mixture.

    With `private` only its owner can read it; without, as the user's mask says. Raises `DiskFullError` when the disk
    has no room; the old file then stays.
    """
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        with _fresh(part, private=private) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise as_disk_full(error, path) from error
    fsync_folder(path.parent)


def create_exclusively(path: Path, content: bytes | str, *, private: bool = True) -> bool:
    """Create `path` with `content` unless it exists; whether it was created. Never overwrites.

    `private` is as for `write_atomically`.
    """
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        with _fresh(part, private=private) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(part, path)
    except FileExistsError:
        return False
    except OSError as error:
        raise as_disk_full(error, path) from error
    finally:
        part.unlink(missing_ok=True)
    fsync_folder(path.parent)
    return True


def _fresh(part: Path, *, private: bool) -> BinaryIO:
    return open_private(part, "wb") if private else part.open("wb")


def as_disk_full(error: OSError, path: Path) -> Exception:
    """`error`, or a `DiskFullError` that names the disk when that is the cause."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    folder = next(place for place in (path, *path.parents) if place.is_dir())
    free_mb = shutil.disk_usage(folder).free / 1e6
    return DiskFullError(
        f"no room left to write {path} ({free_mb:.1f} MB free)",
        fix=f"free space on the disk of {folder}, or set SLIPWAY_HOME to a larger one",
    )


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raise `DiskFullError` that names the disk if `needed_bytes` do not fit onto that of `folder`."""
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise DiskFullError(
            f"{needed_bytes / 1e6:.1f} MB do not fit into {folder}: "
            f"the disk mounted at {mount_of(folder)} has {free / 1e6:.1f} MB free",
            fix="free space on that disk, or set SLIPWAY_HOME to a larger one",
        )


def mount_of(folder: Path) -> Path:
    """Where the disk that holds `folder` is mounted."""
    here = folder.resolve()
    return next(place for place in (here, *here.parents) if os.path.ismount(place))


@contextlib.contextmanager
def file_lock(path: Path, *, wait: bool, holder: str, shared: bool = False) -> Iterator[None]:
    """Hold a lock that the kernel releases when this process dies; exclusive, unless `shared` with others like it.

    With `wait=False` a lock held elsewhere raises `BusyError` that names `holder`. A wait has no limit but the
    run's own: it ends with `StageCancelledError` when that is cancelled.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
    try:
        while not _locks(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
            if not wait:
                raise BusyError(
                    f"another run is already working on {holder}", fix="wait for it to end, then try again"
                )
            current().check()
            current().wait(_LOCK_POLL_S)
        yield
    finally:
        os.close(handle)


def _locks(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sweep_dead_writers(folder: Path) -> list[Path]:
    """Remove what `write_atomically` and `create_exclusively` left when their process was killed.

    For folders of this host only: a writer is known by its process id. What was removed.
    """
    removed = []
    for part in folder.rglob(f"*{PART}"):
        if part.is_file() and _left_by_the_dead(part):
            part.unlink(missing_ok=True)
            removed.append(part)
    return removed


def remove_folder(folder: Path) -> None:
    """Remove a folder such that a kill leaves no half of it under its name. Raises `OSError`."""
    doomed = folder.with_name(f"{folder.name}.{os.getpid()}{PART}")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def sweep_doomed(parent: Path) -> None:
    """End what `remove_folder` left of folders below `parent` when its process was killed."""
    for part in parent.glob(f"*{PART}"):
        if part.is_dir() and _left_by_the_dead(part):
            shutil.rmtree(part, ignore_errors=True)


def _left_by_the_dead(part: Path) -> bool:
    writer = part.name.removesuffix(PART).rpartition(".")[2]
    return writer.isdigit() and not Path("/proc", writer).exists()


@contextlib.contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """An empty folder of that name for as long as the block takes; what a killed run left in it goes first.

    Unlike one below the system's folder for temporary files it is found again. Only one at a time may use the name.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep_parts(folder: Path, keep: Collection[Path] = ()) -> list[Path]:
    """Remove unfinished files and folders below `folder` that a killed run left, but for `keep`; what was removed.

    Call only while holding the lock under which they are written.
    """
    removed = []
    for part in sorted(folder.rglob(f"*{PART}"), key=lambda found: len(found.parts)):
        if part in keep or not part.exists():
            continue
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part)
        else:
            part.unlink()
        removed.append(part)
    return removed
