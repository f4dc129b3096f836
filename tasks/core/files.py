"""Writes that a crash cannot leave half done (docs/design.md): `.part`, fsync, rename, fsync of the folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from tasks.core.cancellation import current
from tasks.core.disk_faults import as_disk_fault, disk_fault
from tasks.core.errors import BusyError, DiskError, DiskFullError, ModelError, WrongUseError

PART = ".part"
PRIVATE = 0o600
"""Files of the home are for their owner alone."""
_NO_FOLDER = (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_LOCK_POLL_S = 0.05
_LAST_WRITES_S = 5.0
_PURPOSE_BYTES = 400
_PROBE_BYTES = 1 << 16


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_regular(path: Path, most_bytes: int) -> bytes:
    """The content of a small file, without ever waiting for a pipe.

    Raises `ModelError` if it is not a file or larger than `most_bytes`, else `OSError`.
    """
    _check_regular(path, path.stat().st_mode)  # opening a device may have side effects
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        _check_regular(path, os.fstat(handle).st_mode)
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ModelError(f"{path} is larger than {most_bytes} bytes, the limit", fix="find out what wrote it")
    return content


def _check_regular(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise ModelError(f"{path} is a {kind_of(mode)}, not a file", fix="replace it with the file")


def kind_of(mode: int) -> str:
    """The kind of a path that is not a regular file, as one word."""
    kinds = {
        stat.S_IFIFO: "pipe",
        stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "device",
        stat.S_IFBLK: "device",
        stat.S_IFDIR: "folder",
    }
    return kinds.get(stat.S_IFMT(mode), "special file")


def make_folder(folder: Path, *, mode: int = 0o777) -> bool:
    """Create `folder` and those above it if needed; whether it was created. `mode`, less the umask, is for
    `folder` only.

    Raises `DiskError`, or `WrongUseError` for a path that cannot be a folder.
    """
    try:
        if folder.is_dir():
            return False
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
    except FileExistsError:
        raise WrongUseError(
            f"{folder} exists already, and is not a folder",
            fix="name a folder, or a path that does not exist yet",
        ) from None
    except OSError as error:
        fault = disk_fault(error, folder)
        if isinstance(fault, DiskError) and error.errno not in _NO_FOLDER:
            raise fault from error
        raise WrongUseError(
            f"{folder} cannot be created: {error.strerror}",
            fix=f"name another folder, or {fault.fix}" if fault and fault.fix else "name another folder",
        ) from error
    return True


def open_private(path: Path, mode: Literal["wb", "ab"]) -> BinaryIO:
    """A file open for writing that only its owner can read, even if it existed with other permissions."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if mode == "wb" else os.O_APPEND)
    handle = os.open(path, flags, PRIVATE)
    with contextlib.suppress(PermissionError):  # another user's file that this user may write
        os.fchmod(handle, PRIVATE)
    return os.fdopen(handle, mode)


def write_atomically(path: Path, content: bytes | str, *, private: bool = True) -> None:
    """Replace `path` with `content`; readers see the old bytes or the new, never a mixture.

    With `private` only its owner can read it; without, the user's umask decides. Raises `DiskError`, such as
    `DiskFullError` if the disk has no space; the old file then stays.
    """
    with _written(path, content, private=private) as part:
        part.rename(path)


def create_exclusively(path: Path, content: bytes | str, *, private: bool = True) -> bool:
    """Create `path` with `content` unless it exists; whether it was created. Never overwrites. Raises `DiskError`.

    `private` is as for `write_atomically`.
    """
    with _written(path, content, private=private) as part:
        try:
            os.link(part, path)
        except FileExistsError:
            return False
    return True


@contextlib.contextmanager
def _written(path: Path, content: bytes | str, *, private: bool) -> Iterator[Path]:
    """The file that the block gives its name: next to `path`, with all of the content on the disk."""
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_private(part, "wb") if private else part.open("wb") as file:
            _write_out(file, content.encode() if isinstance(content, str) else content)
        yield part
        fsync_folder(path.parent)
    except OSError as error:
        raise _fault_at(error, path, part) from error
    finally:
        _drop(part)


def _write_out(file: BinaryIO, data: bytes) -> None:
    """Write, down to the disk."""
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _drop(part: Path) -> None:
    """Remove what is left of a write; if that fails after a failure, the first error says why."""
    with contextlib.suppress(OSError):
        part.unlink()


def _fault_at(error: OSError, path: Path, part: Path) -> Exception:
    """The fault, naming the file itself rather than its `.part`."""
    named = path if error.filename is None or Path(error.filename) == part else Path(error.filename)
    return as_disk_fault(OSError(error.errno, error.strerror, str(named)), path)


def check_writable(folder: Path) -> None:
    """Before long work: check that `folder` can be written to. Raises `DiskError`."""
    probe = folder / f"writable.{os.getpid()}{PART}"
    try:
        make_folder(folder)
        with probe.open("wb") as file:
            _write_out(file, bytes(_PROBE_BYTES))
    except OSError as error:
        raise _fault_at(error, folder, probe) from error
    finally:
        _drop(probe)


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raise a `DiskFullError` that names the disk if `needed_bytes` do not fit onto the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise DiskFullError(
            f"{needed_bytes / 1e6:.1f} MB do not fit into {folder}: "
            f"the disk mounted at {mount_of(folder)} has {free / 1e6:.1f} MB free",
            fix="free space on that disk, or set SLIPWAY_HOME to a larger one",
        )


def mount_of(folder: Path) -> Path:
    """Mount point of the disk of `folder`."""
    here = folder.resolve()
    return next(place for place in (here, *here.parents) if os.path.ismount(place))


@contextlib.contextmanager
def file_lock(
    path: Path, *, wait: bool, holder: str, shared: bool = False, purpose: str = ""
) -> Iterator[None]:
    """Hold a lock that the kernel releases when this process dies; exclusive, unless `shared` with others like it.

    With `wait=False` a lock held elsewhere raises `BusyError`, which names `holder` and the `purpose` of an exclusive
    holder. Waiting has no limit of its own: it ends with `StageCancelledError` when the run is cancelled. Raises
    `DiskError` if the lock's file cannot be created.
    """
    handle = _open_lock(path)
    try:
        while not takes_lock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
            if not wait:
                says = holder_says(path)
                raise BusyError(
                    f"another run is already working on {holder}{f': {says}' if says else ''}",
                    fix="wait for it to end, then try again",
                )
            current().check()
            current().wait(_LOCK_POLL_S)
        if not shared:
            _write_purpose(handle, purpose)
        yield
    finally:
        os.close(handle)


def is_held(path: Path) -> bool:
    """Whether another process, or another block, holds that lock now."""
    try:
        with file_lock(path, wait=False, holder=str(path)):
            return False
    except BusyError:
        return True


def holder_says(path: Path) -> str:
    """The purpose of the exclusive holder of a lock that is held; empty if it gave none."""
    try:
        return read_regular(path, _PURPOSE_BYTES).decode(errors="replace")
    except (OSError, ModelError):
        return ""


def _write_purpose(handle: int, purpose: str) -> None:
    """Replace what an earlier holder wrote. A disk that is full does not prevent holding the lock."""
    with contextlib.suppress(OSError):
        if os.fstat(handle).st_size:
            os.ftruncate(handle, 0)
        if purpose:
            os.pwrite(handle, purpose.encode(), 0)


def _open_lock(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
    except OSError as error:
        raise as_disk_fault(error, path) from error


def takes_lock(handle: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Whether the lock on an open file could be taken at once."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sweep_dead_writers(folder: Path) -> list[Path]:
    """Remove files that `write_atomically` and `create_exclusively` left when their process was killed; the
    removed ones.

    For folders of this host only: a writer is identified by its process id.
    """
    removed = []
    for part in folder.rglob(f"*{PART}"):
        if part.is_file() and _left_by_the_dead(part):
            part.unlink(missing_ok=True)
            removed.append(part)
    return removed


def discard(*paths: Path) -> None:
    """Remove files and folders. Removing a folder is retried for a moment: the children of a killed run die
    just after it, and one may still be writing there."""
    for path in paths:
        deadline = time.monotonic() + _LAST_WRITES_S
        while path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=time.monotonic() < deadline)
        path.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that a kill never leaves half of it under its name. Raises `OSError`."""
    doomed = folder.with_name(f"{folder.name}.{os.getpid()}{PART}")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def sweep_doomed(parent: Path) -> None:
    """Finish removals below `parent` whose process was killed in `remove_folder`."""
    for part in parent.glob(f"*{PART}"):
        if part.is_dir() and _left_by_the_dead(part):
            shutil.rmtree(part, ignore_errors=True)


def _left_by_the_dead(part: Path) -> bool:
    writer = part.name.removesuffix(PART).rpartition(".")[2]
    return writer.isdigit() and not Path("/proc", writer).exists()


@contextlib.contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """An empty folder of that name for the duration of the block; what a killed run left in it is removed first.

    Unlike one in the system's temporary folder, it is found again. Only one run at a time may use the name.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep_parts(folder: Path, keep: Collection[Path] = ()) -> list[Path]:
    """Remove unfinished files and folders below `folder` that a killed run left, except `keep`; the removed ones.

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
