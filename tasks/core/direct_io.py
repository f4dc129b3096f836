"""Read and write past the page cache, through reusable buffers.

A disk moves whole blocks between aligned places; a tensor starts anywhere. So a read takes the blocks around
the wanted bytes and moves these down to their place in the same buffer, in steps that stay in the CPU's
cache: by measurement, a tenth of the cost of a copy into a second buffer. File systems that refuse direct I/O
are read and written as usual.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from blake3 import blake3

BLOCK = 4096
"""Offsets, lengths and addresses of direct I/O are multiples of this."""

CHUNK_BYTES = 16 << 20
"""The unit that is read, hashed, written and noted."""

_HUGE_PAGE = 2 << 20
_STEP = 256 << 10
_REFUSED = (errno.EINVAL, errno.EOPNOTSUPP)
_libc = ctypes.CDLL(None, use_errno=True)

Took = Callable[[memoryview], object]
"""Called with each piece that was read, in order, while it is still in the CPU's cache."""


class Buffer:
    """Memory at an aligned address: `size_bytes` plus room for the blocks around the wanted bytes."""

    def __init__(self, view: memoryview, size_bytes: int) -> None:
        self.view = view
        self.size_bytes = size_bytes
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(view))

    def move_down(self, start: int, to: int, length: int) -> None:
        """Move `length` bytes from `start` to `to`, which must not be greater."""
        ctypes.memmove(self._address + to, self._address + start, length)


def ring(count: int, size_bytes: int) -> Sequence[Buffer]:
    """Buffers in one mapping of huge pages, if the system allows it."""
    stride = size_bytes + 3 * BLOCK
    stride += -stride % BLOCK
    mapping = mmap.mmap(-1, count * stride + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        mapping.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(mapping)
    skip = -ctypes.addressof(ctypes.c_char.from_buffer(mapping)) % _HUGE_PAGE
    return [Buffer(view[skip + i * stride : skip + (i + 1) * stride], size_bytes) for i in range(count)]


class DirectFile:
    """A file open for direct I/O, or for ordinary I/O if the file system refuses that. Threads may share it."""

    def __init__(self, path: Path, flags: int, *, direct: bool = True) -> None:
        flags |= os.O_CLOEXEC
        self.direct = direct
        try:
            self.handle = os.open(path, flags | (os.O_DIRECT if direct else 0), 0o644)
        except OSError as error:
            if not direct or error.errno not in _REFUSED:
                raise
            self.handle = os.open(path, flags, 0o644)
            self.direct = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.handle)

    def close(self) -> None:
        """Close the handle."""
        os.close(self.handle)

    def read_into(self, offset: int, length: int, buffer: Buffer, at: int, took: Took) -> int:
        """Read `length` bytes to `buffer.view[at:]`; how many there were. Whatever follows them is overwritten."""
        if self.direct:
            try:
                return self._read_blocks(offset, length, buffer, at, took)
            except OSError as error:
                if error.errno not in _REFUSED:
                    raise
                self._give_up_direct()
        done = 0
        while done < length:
            start = at + done
            count = os.preadv(
                self.handle, [buffer.view[start : start + min(_STEP, length - done)]], offset + done
            )
            if not count:
                break
            took(buffer.view[start : start + count])
            done += count
        return done

    def _read_blocks(self, offset: int, length: int, buffer: Buffer, at: int, took: Took) -> int:
        lead = offset % BLOCK
        place = at + -at % BLOCK
        wanted = lead + length
        blocks = wanted + -wanted % BLOCK
        got = 0
        while got < wanted:
            count = os.preadv(self.handle, [buffer.view[place + got : place + blocks]], offset - lead + got)
            if not count:
                break
            got += count
            if got % BLOCK:  # the end of the file
                break
        there = max(0, min(length, got - lead))
        for done in range(0, there, _STEP):
            step = min(_STEP, there - done)
            if place + lead != at:
                buffer.move_down(place + lead + done, at + done, step)
            took(buffer.view[at + done : at + done + step])
        return there

    def write(self, buffer: Buffer, length: int, offset: int) -> None:
        """Write the buffer's first bytes at `offset`, a multiple of `BLOCK`. The last block is padded."""
        if self.direct:
            filled = length + -length % BLOCK
            buffer.view[length:filled] = bytes(filled - length)
            length = filled
        done = 0
        while done < length:
            try:
                done += os.pwrite(self.handle, buffer.view[done:length], offset + done)
            except OSError as error:
                if not self.direct or error.errno not in _REFUSED:
                    raise
                self._give_up_direct()

    def _give_up_direct(self) -> None:
        fcntl.fcntl(self.handle, fcntl.F_SETFL, fcntl.fcntl(self.handle, fcntl.F_GETFL) & ~os.O_DIRECT)
        self.direct = False


def reserve(handle: int, size_bytes: int) -> None:
    """Set a file's size, and reserve the space if the file system can. Raises `OSError`."""
    # Not `os.posix_fallocate`: without support by the file system, glibc writes into every block.
    if size_bytes and _libc.fallocate(handle, 0, ctypes.c_long(0), ctypes.c_long(size_bytes)):
        code = ctypes.get_errno()
        if code not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise OSError(code, os.strerror(code))
    os.ftruncate(handle, size_bytes)


def chunk_count(size_bytes: int, chunk_bytes: int = CHUNK_BYTES) -> int:
    """How many chunks a file has; the last may be shorter."""
    return -(-size_bytes // chunk_bytes)


def digest_of_chunks(chunks: Sequence[str]) -> str:
    """Digest of a file from those of its chunks (hexadecimal): BLAKE3 of the bytes if there is only one chunk."""
    if len(chunks) == 1:
        return f"blake3:{chunks[0]}"
    return f"blake3-chunks:{blake3(b''.join(map(bytes.fromhex, chunks))).hexdigest()}"
