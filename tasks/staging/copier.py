"""Copy ranges of a source straight into the final files: one pass, several threads, hashed on the way.

Each thread has one buffer and takes the next chunk: read, hash, write, note. A chunk that exists already,
according to the manifest or the ledger of a killed copy, is read back and compared, so that only missing
chunks are copied. A file that exists already is repaired in place, whatever its length, because there may be
no space for a second copy.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from tasks.core.cancellation import current
from tasks.core.direct_io import Buffer, DirectFile, chunk_count, reserve, ring
from tasks.core.disk_faults import as_disk_fault
from tasks.core.errors import ModelError, WrongUseError
from tasks.core.files import PART, fsync_folder, make_folder
from tasks.core.manifest import StagedFile
from tasks.core.paths import inside
from tasks.core.progress import advance, say
from tasks.core.verdicts import StageName
from tasks.staging.layout import Chunk, PlannedFile, chunks_of
from tasks.staging.source import Pinned

Note = Callable[[str, int, str], None]
"""Remembers a written chunk: file, number, digest."""


@dataclass
class Copied:
    """What a copy did: finished files, bytes written, and files whose content at the source has changed."""

    files: dict[str, StagedFile] = field(default_factory=dict)
    touched: list[str] = field(default_factory=list)
    copied_bytes: int = 0
    damaged: list[str] = field(default_factory=list)


@dataclass
class _Target:
    """A file being copied. With `binding`, only the `expected` content is written."""

    planned: PlannedFile
    path: Path
    place: Path
    expected: Mapping[int, str]
    binding: bool
    digests: dict[int, str] = field(default_factory=dict)
    copied_bytes: int = 0
    refused: bool = False
    resized: bool = False
    file: DirectFile | None = None
    began: float = 0.0

    @classmethod
    def of(cls, planned: PlannedFile, folder: Path, expected: Mapping[int, str], binding: bool) -> _Target:
        """Decide once where it is written.

        Raises `WrongUseError` if a folder has its name, `UnsafeNameError` for a name that leads out of `folder`.
        """
        path = inside(folder, planned.path, "the plan of this copy")
        place = place_of(path)
        for found in (path, place):
            if found.is_dir() and not found.is_symlink():
                raise WrongUseError(
                    f"{found} is a folder, but a file must be written there",
                    fix=f"move it away: mv {found} {found}.damaged",
                )
        return cls(planned, path, place, expected, binding)

    @property
    def in_place(self) -> bool:
        """Whether it is repaired under its final name."""
        return self.place == self.path


def part_of(path: Path) -> Path:
    """Where a file is written until it is complete."""
    return path.with_name(path.name + PART)


def place_of(path: Path) -> Path:
    """Where a copy writes the file: as `.part` until it is complete, or in place if it exists.

    A link does not count as a file of this folder. A rename replaces it; writing to it would change its target.
    """
    return path if path.is_file() and not path.is_symlink() else part_of(path)


def copy(
    pinned: Pinned,
    files: Sequence[PlannedFile],
    folder: Path,
    *,
    expected: Mapping[str, Mapping[int, str]],
    binding: bool,
    sums: Mapping[str, str],
    note: Note,
    chunk_bytes: int,
) -> Copied:
    """Copy these files into `folder`. Raises `DiskFullError`, `ModelError`, and what the source raises.

    `expected` are digests of chunks that may exist; with `binding` no other content is accepted. `sums` are the
    source files' SHA-256. After a fault, what was written stays as `.part` files.
    """
    copier = _Copier(pinned, folder, sums, note, chunk_bytes)
    targets = [_Target.of(planned, folder, expected.get(planned.path, {}), binding) for planned in files]
    for parent in {target.path.parent for target in targets} - {folder}:
        make_folder(parent)
    _reserve(targets)
    copier.run(targets)
    for parent in {target.path.parent for target in targets} - {folder}:
        fsync_folder(parent)
    return copier.done


def missing_bytes(files: Sequence[PlannedFile], folder: Path) -> int:
    """Space that these files still need on the disk, bytes: less what is written or reserved already."""
    needed = 0
    for planned in files:
        needed += planned.size_bytes
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            needed -= min(planned.size_bytes, place_of(folder / planned.path).lstat().st_blocks * 512)
    return needed


def _reserve(targets: Sequence[_Target]) -> None:
    """Reserve space for all files at once, so that a full disk shows before anything is copied.

    A file in place that is too long (a kill may leave its last block padded) or too short gets its length here.
    """
    made = []
    for target in targets:
        place, size = target.place, target.planned.size_bytes
        fresh = not place.exists()
        target.resized = target.in_place and place.stat().st_size != size
        if target.in_place and not target.resized:
            continue
        try:
            with DirectFile(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW) as file:
                made += [place] if fresh else []
                reserve(file.handle, size)
                if target.resized:
                    os.fsync(file.handle)
        except OSError as error:
            for part in made:
                part.unlink(missing_ok=True)
            raise as_disk_fault(error, target.path) from error


class _Copier:
    def __init__(
        self, pinned: Pinned, folder: Path, sums: Mapping[str, str], note: Note, chunk_bytes: int
    ) -> None:
        self.done = Copied()
        self._pinned = pinned
        self._files = {file.path: file for file in pinned.files}
        self._folder = folder
        self._note = note
        self._chunk_bytes = chunk_bytes
        self._lock = threading.Lock()
        self._failed = threading.Event()
        self._sums = _Sums(pinned, sums, self._failed) if sums else None

    def run(self, targets: Sequence[_Target]) -> None:
        for target in targets:
            if not target.planned.size_bytes:
                self._finish(target, None)
        total = sum(chunk_count(target.planned.size_bytes, self._chunk_bytes) for target in targets)
        if not total:
            return
        workers = min(self._pinned.source.parallel, total)
        size = min(self._chunk_bytes, max(target.planned.size_bytes for target in targets))
        work = enumerate(
            (target, chunk) for target in targets for chunk in chunks_of(target.planned, self._chunk_bytes)
        )
        try:
            with ThreadPoolExecutor(workers, thread_name_prefix="copy") as pool:
                futures = [
                    pool.submit(copy_context().run, self._work, work, buffer)
                    for buffer in ring(workers, size)
                ]
                try:
                    for future in futures:
                        future.result()
                finally:
                    self._failed.set()
        finally:
            for target in targets:
                if target.file is not None:
                    target.file.close()
        if self._sums:
            self._sums.close()

    def _work(self, work: Iterator[tuple[int, tuple[_Target, Chunk]]], buffer: Buffer) -> None:
        signal = current()
        try:
            while not self._failed.is_set():
                signal.check()
                with self._lock:
                    item = next(work, None)
                    if item is None:
                        return
                    turn, (target, chunk) = item
                    file = self._open(target)
                try:
                    self._place(target, chunk, file, buffer)
                    if self._sums:
                        self._sums.feed(turn, chunk, buffer)
                    self._complete(target, file)
                except OSError as error:
                    raise as_disk_fault(error, target.path) from error
        except BaseException:
            self._failed.set()
            raise

    def _open(self, target: _Target) -> DirectFile:
        """The open file; the first thread that needs it opens it for all. Call while holding the lock."""
        if target.file is None:
            target.file = DirectFile(target.place, os.O_RDWR | os.O_NOFOLLOW)
            target.began = time.monotonic()
        return target.file

    def _place(self, target: _Target, chunk: Chunk, file: DirectFile, buffer: Buffer) -> None:
        """Get the chunk into its place and into the buffer."""
        expected = target.expected.get(chunk.number)
        looked = expected is not None or target.in_place
        there = self._digest_of_what_is_there(chunk, file, buffer) if looked else None
        digest = there if there is not None and there == expected else self._fetch(chunk, buffer)
        refused = target.binding and digest != expected
        written = digest != there and not refused
        if written:
            file.write(buffer, chunk.size_bytes, chunk.start)
        if digest != expected and not refused:
            self._note(target.planned.path, chunk.number, digest)
        with self._lock:
            target.refused |= refused
            target.digests[chunk.number] = digest
            target.copied_bytes += chunk.size_bytes if written else 0
        advance(chunk.size_bytes)

    def _digest_of_what_is_there(self, chunk: Chunk, file: DirectFile, buffer: Buffer) -> str:
        state = blake3()
        with contextlib.suppress(OSError):  # a block that the disk cannot read counts as damage
            file.read_into(chunk.start, chunk.size_bytes, buffer, 0, state.update)
        return state.hexdigest()

    def _fetch(self, chunk: Chunk, buffer: Buffer) -> str:
        state = blake3()
        at = len(chunk.head)
        buffer.view[:at] = chunk.head
        state.update(chunk.head)
        for item in chunk.ranges:
            self._pinned.source.read_into(
                self._files[item.path], item.start, item.size_bytes, buffer, at, state.update
            )
            at += item.size_bytes
        return state.hexdigest()

    def _complete(self, target: _Target, file: DirectFile) -> None:
        with self._lock:
            total = chunk_count(target.planned.size_bytes, self._chunk_bytes)
            if len(target.digests) < total or target.file is None:
                return
            target.file = None  # only one thread gets here
        self._finish(target, file)

    def _finish(self, target: _Target, file: DirectFile | None) -> None:
        planned = target.planned
        if file is not None:
            if target.copied_bytes:
                os.ftruncate(file.handle, planned.size_bytes)
            os.fsync(file.handle)  # includes what a killed copy wrote
            file.close()
        if target.refused:
            part_of(target.path).unlink(missing_ok=True)
        elif not target.in_place:
            target.place.rename(target.path)
        with self._lock:
            if target.refused:
                self.done.damaged.append(planned.path)
                return
            digests = [target.digests[number] for number in sorted(target.digests)]
            self.done.files[planned.path] = StagedFile.of(
                planned.path, planned.size_bytes, planned.kind, digests
            )
            self.done.copied_bytes += target.copied_bytes
            if target.copied_bytes or target.resized or not target.in_place:
                self.done.touched.append(planned.path)
        if planned.kind in ("weights", "gguf") and target.copied_bytes:
            rate = target.copied_bytes / 1e6 / max(time.monotonic() - target.began, 1e-6)
            say(StageName.STAGING, f"{planned.path}: {target.copied_bytes / 1e6:.1f} MB at {rate:.0f} MB/s")


class _Sums:
    """SHA-256 of source files. It needs their bytes in order, so threads take turns with their chunks."""

    def __init__(self, pinned: Pinned, sums: Mapping[str, str], failed: threading.Event) -> None:
        self._pinned = pinned
        self._sums = sums
        self._failed = failed
        self._turns = threading.Condition()
        self._turn = 0
        self._states = {path: hashlib.sha256() for path in sums}
        self._positions = dict.fromkeys(sums, 0)

    def feed(self, turn: int, chunk: Chunk, buffer: Buffer) -> None:
        """Add the chunk's bytes once all chunks before it were added."""
        with self._turns:
            while self._turn != turn:
                if self._failed.is_set():
                    return
                self._turns.wait(0.1)
        at = len(chunk.head)
        for item in chunk.ranges:
            if item.path in self._states:
                self._catch_up(item.path, item.start)
                if self._positions[item.path] == item.start:
                    self._states[item.path].update(buffer.view[at : at + item.size_bytes])
                    self._positions[item.path] += item.size_bytes
            at += item.size_bytes
        with self._turns:
            self._turn += 1
            self._turns.notify_all()

    def close(self) -> None:
        """Compare. Raises a `ModelError` that names a file whose SHA-256 differs from what the source states."""
        for path, wanted in self._sums.items():
            if self._positions[path]:
                self._catch_up(path, self._pinned.file(path).size_bytes)
                if self._states[path].hexdigest() != wanted:
                    raise ModelError(
                        f"{self._pinned.source.name}/{path} does not have the SHA-256 that the source states for it "
                        f"({wanted[:12]}…)",
                        fix="download the model again",
                    )

    def _catch_up(self, path: str, to: int) -> None:
        """Read what chunks do not contain, or contain in another order: the header, and tensors that were moved."""
        file = self._pinned.file(path)
        while self._positions[path] < to:
            start = self._positions[path]
            content = self._pinned.source.read(file, start, min(1 << 20, to - start))
            self._states[path].update(content)
            self._positions[path] += len(content)
