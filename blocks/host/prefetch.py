"""Read a model's files into the page cache while an engine starts: it maps them, and page by page is slow."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from blocks.host.page_cache import Mapping, available_bytes, cached_bytes, gives_memory_back
from tasks.core.prefetch import Prefetched, why_not
from tasks.core.progress import say

PIECE_BYTES = 64 << 20
THREADS = 8
"""This many saturate a disk even while the engine's start keeps the CPUs busy (measured)."""

_BUFFER_BYTES = 4 << 20
_POPULATE_READ = 22


@dataclass(frozen=True)
class _Piece:
    """A range of an open file, and how much of it is not in the page cache."""

    handle: int
    start: int
    size_bytes: int
    missing_bytes: int


class Prefetcher:
    """Prefetches for one stage of a run. Implements `tasks.core.prefetch.Prefetch`.

    A prefetch is optional: a failure is reported once to the stage's listeners, and the block continues. Its threads
    end with the block, between two pieces. `huge_pages` requests huge pages for the page cache; by default they are
    used on a machine that does not return free memory to its host.
    """

    def __init__(
        self,
        stage: str,
        *,
        threads: int = THREADS,
        piece_bytes: int = PIECE_BYTES,
        huge_pages: bool | None = None,
    ) -> None:
        self._stage = stage
        self._threads = threads
        self._piece_bytes = piece_bytes
        self._huge_pages = not gives_memory_back() if huge_pages is None else huge_pages
        self._said = False

    @contextlib.contextmanager
    def __call__(self, paths: Sequence[Path]) -> Iterator[Prefetched]:
        """Read whatever is not in the page cache yet of these files, or of the files in these folders."""
        done = Prefetched()
        with contextlib.ExitStack() as stack:
            try:
                pieces = [piece for file in _files(paths) for piece in self._pieces(_open(stack, file))]
                done.why_not = why_not(sum(piece.missing_bytes for piece in pieces), available_bytes())
                if pieces and not done.why_not:
                    stack.enter_context(self._in_threads(pieces, done))
                else:
                    done.ended.set()
            except OSError as error:
                done.why_not = str(error)
                done.ended.set()
            self._say(done)
            yield done
        self._say(done)

    def _pieces(self, handle: int) -> Iterator[_Piece]:
        """The parts of a file that are not in the page cache. Raises `OSError`."""
        end = os.fstat(handle).st_size
        for start in range(0, end, self._piece_bytes):
            size = min(self._piece_bytes, end - start)
            missing = size - (cached_bytes(handle, start, size) or 0)
            if missing:
                yield _Piece(handle, start, size, missing)

    @contextlib.contextmanager
    def _in_threads(self, pieces: Sequence[_Piece], done: Prefetched) -> Iterator[None]:
        crew = _Crew(pieces, done, huge_pages=self._huge_pages)
        threads = [
            threading.Thread(target=crew.work, name="slipway-prefetch", daemon=True)
            for _ in range(self._threads)
        ]
        started = []
        try:
            with contextlib.suppress(RuntimeError):  # no more threads possible: those that started are enough
                for thread in threads:
                    thread.start()
                    started.append(thread)
            if not started:
                done.why_not = "no thread could be started"
                done.ended.set()
            yield
        finally:
            crew.stop()
            for thread in started:
                thread.join()

    def _say(self, done: Prefetched) -> None:
        if done.why_not and not self._said:
            self._said = True
            say(self._stage, f"not read ahead: {done.why_not}")


class _Crew:
    """Threads that share the pieces of a list."""

    def __init__(self, pieces: Sequence[_Piece], done: Prefetched, *, huge_pages: bool) -> None:
        self._pieces = iter(pieces)
        self._done = done
        self._huge_pages = huge_pages
        self._lock = threading.Lock()
        self._start = time.monotonic()
        self._stopped = False
        self._at_work = 0

    def stop(self) -> None:
        """Take no further piece."""
        self._stopped = True

    def work(self) -> None:
        """Read pieces until none is left, one fails, or `stop`."""
        with self._lock:
            self._at_work += 1
        try:
            while (piece := self._next()) is not None:
                _bring_in(piece, huge_pages=self._huge_pages)
                with self._lock:
                    self._done.read_bytes += piece.missing_bytes
                    self._done.seconds = time.monotonic() - self._start
        except OSError as error:
            self.stop()
            self._done.why_not = str(error)
        finally:
            with self._lock:
                self._at_work -= 1
                if not self._at_work:
                    self._done.ended.set()

    def _next(self) -> _Piece | None:
        with self._lock:
            return None if self._stopped else next(self._pieces, None)


def _files(paths: Sequence[Path]) -> list[Path]:
    """The files, and those in the folders, each once."""
    found = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    return [file for file in dict.fromkeys(found) if file.is_file()]


def _open(stack: contextlib.ExitStack, path: Path) -> int:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, handle)
    return handle


def _bring_in(piece: _Piece, *, huge_pages: bool) -> None:
    """Read into the page cache only, through a memory map that is dropped at once; the kernel fills it
    without a copy."""
    try:
        with Mapping(piece.handle, piece.start, piece.size_bytes) as mapping:
            if huge_pages:
                with contextlib.suppress(OSError):  # a kernel without huge pages
                    mapping.advise(mmap.MADV_HUGEPAGE)
            mapping.advise(_POPULATE_READ)
    except OSError as error:
        if error.errno != errno.EINVAL:  # raised by a kernel before 5.14
            raise
        read_through(piece.handle, piece.start, piece.size_bytes)


def read_through(handle: int, start: int, size_bytes: int) -> None:
    """The same by reading into one small buffer repeatedly. Raises `OSError`."""
    with mmap.mmap(-1, _BUFFER_BYTES) as buffer, memoryview(buffer) as view:
        here, end = start, start + size_bytes
        while here < end and (got := os.preadv(handle, [view[: min(len(view), end - here)]], here)):
            here += got
