"""The page cache: how much of a file is in it, how to evict a file, and how much more fits."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from pathlib import Path

import psutil

from tasks.core.errors import SlipwayError

COLD = 0.01
"""Largest share of a file in the page cache that still counts as cold."""

_CACHESTAT = 451  # the same number on every architecture
_MAP_SHARED = 1
_FAILED = ctypes.c_void_p(-1).value
_CGROUPS = Path("/sys/fs/cgroup")
_BALLOONS = Path("/sys/bus/virtio/drivers/virtio_balloon")
_REPORTING = 5
"""The feature bit of free page reporting: VIRTIO_BALLOON_F_PAGE_REPORTING of the virtio specification 1.2, 5.5.3."""

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
]  # fmt: skip
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
libc.syscall.restype = ctypes.c_long


class _Range(ctypes.Structure):
    _fields_ = (("start", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Counts(ctypes.Structure):
    """Pages, as `cachestat(2)` counts them."""

    _fields_ = tuple(
        (name, ctypes.c_uint64) for name in ("cached", "dirty", "writeback", "evicted", "evicted_lately")
    )


class Mapping:
    """Some bytes of a file, mapped for reading. `start` is a multiple of the page size. Raises `OSError`.

    This calls the C library, because Python's `mmap` does not release the GIL while the kernel reads.
    """

    def __init__(self, handle: int, start: int, size_bytes: int) -> None:
        self._size = size_bytes
        self._address = libc.mmap(None, size_bytes, mmap.PROT_READ, _MAP_SHARED, handle, start)
        if self._address == _FAILED:
            raise _error()

    def __enter__(self) -> Mapping:
        return self

    def __exit__(self, *_: object) -> None:
        libc.munmap(self._address, self._size)

    def advise(self, advice: int) -> None:
        """Call `madvise(2)`. Raises `OSError`."""
        if libc.madvise(self._address, self._size, advice):
            raise _error()

    def cached_pages(self) -> int:
        """Number of its pages in the page cache. Raises `OSError`."""
        states = ctypes.create_string_buffer(-(-self._size // mmap.PAGESIZE))
        if libc.mincore(self._address, self._size, states):
            raise _error()
        return sum(state & 1 for state in states.raw)


def cached_bytes(handle: int, start: int, size_bytes: int) -> int | None:
    """How much of a range of an open file is in the page cache; None if this process may not know.

    Raises `OSError` if the file cannot be checked at all.
    """
    if size_bytes == 0:
        return 0
    try:
        pages = _count(handle, start, size_bytes)
    except OSError as error:
        if error.errno == errno.ENOSYS and _owns(handle):  # before Linux 6.5
            with Mapping(handle, start, size_bytes) as mapping:
                pages = mapping.cached_pages()
        elif error.errno in (errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP):
            return None
        else:
            raise
    return min(pages * mmap.PAGESIZE, size_bytes)


def cached_share(path: Path) -> float | None:
    """Share of a file that is in the page cache; None if this process may not know."""
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        cached = cached_bytes(file.fileno(), 0, size)
    return None if cached is None else cached / max(1, size)


def evict(path: Path) -> None:
    """Evict a file from the page cache, and check that it is gone.

    Raises `SlipwayError` if it is not, for example because another process maps it, or the file system keeps it.
    """
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    share = cached_share(path)
    if share is None or share > COLD:
        raise SlipwayError(
            f"{path} cannot be measured cold: "
            + (f"{share:.0%} of it stays in memory" if share else "this user may not see what is in memory"),
            fix="end the process that has it open, copy it to a local disk, or run as its owner",
        )


def available_bytes() -> int:
    """Memory that the page cache can use without evicting memory in use, within this process's limits, bytes."""
    return min([psutil.virtual_memory().available, *_rooms()])


def gives_memory_back() -> bool:
    """Whether this is a virtual machine that returns free memory to its host (free page reporting)."""
    features = (_read(path) for path in _BALLOONS.glob("virtio*/features"))
    return any(bits[_REPORTING : _REPORTING + 1] == "1" for bits in features)


def _rooms() -> list[int]:
    """The memory that each control group (version 2) of this process has left, bytes."""
    own = next((line[3:] for line in _read("/proc/self/cgroup").splitlines() if line.startswith("0::")), "/")
    folder = _CGROUPS / own.strip("/")
    rooms = []
    for group in (folder, *folder.parents):
        limit = _read(group / "memory.max").strip()
        if limit.isdigit():
            kept = dict(line.split() for line in _read(group / "memory.stat").splitlines())
            used = int(_read(group / "memory.current")) - int(kept.get("file", 0))
            rooms.append(max(0, int(limit) - used))
        if group == _CGROUPS:
            break
    return rooms


def _read(path: Path | str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _count(handle: int, start: int, size_bytes: int) -> int:
    counts = _Counts()
    span = _Range(start, size_bytes)
    if libc.syscall(_CACHESTAT, handle, ctypes.byref(span), ctypes.byref(counts), 0):
        raise _error()
    return int(counts.cached)


def _owns(handle: int) -> bool:
    """`mincore` reports every page of another user's file as present."""
    return os.geteuid() in (0, os.fstat(handle).st_uid)


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
