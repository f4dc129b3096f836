"""What an unfinished copy has written so far: one line per chunk, added when the chunk is in its place.

A line does not prove anything: after a power cut it may exist without its bytes, so the next run reads the chunk and
compares. The first line names the files that are made, and is on the disk before any of them. It distinguishes what a
killed copy left from files that the user keeps in the same folder.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks.core.disk_faults import as_disk_fault
from tasks.core.files import fsync_folder
from tasks.core.paths import is_file_name

LEDGER_FILE = "ledger.jsonl"
_SCHEMA = "slipway.ledger/2"
_NO_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


@dataclass(frozen=True)
class Copy:
    """What is copied, and into which files; the ledger of another copy is useless. `files` are names and
    sizes in bytes."""

    source: str
    source_digest: str
    chunk_bytes: int
    files: tuple[tuple[str, int], ...]

    def header(self) -> dict[str, object]:
        """The ledger's first line."""
        return {"schema": _SCHEMA, **self.__dict__, "files": [list(file) for file in self.files]}


class Ledger:
    """Chunks that are in their place, by file and number. Threads may add to it concurrently."""

    def __init__(self, path: Path, handle: int) -> None:
        self._path = path
        self._handle = handle

    @classmethod
    def begin(cls, folder: Path, copy: Copy) -> Ledger:
        """Continue the ledger of this copy, or begin one. Raises `DiskFullError`."""
        path = folder / LEDGER_FILE
        fresh = read_ledger(folder, copy) is None
        try:
            if fresh:
                path.unlink(missing_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise as_disk_fault(error, path) from error
        ledger = cls(path, handle)
        try:
            if fresh:
                ledger._add(copy.header())
                ledger._sync()
            elif os.pread(handle, 1, os.fstat(handle).st_size - 1) != b"\n":
                ledger._write(b"\n")  # the last line was cut off by a kill
        except BaseException:
            ledger.close()
            if fresh:  # half a first line would not belong to any copy
                path.unlink()
            raise
        return ledger

    def note(self, path: str, number: int, digest: str) -> None:
        """The chunk of that file is written. Raises `DiskFullError`."""
        self._add([path, number, digest])

    def close(self) -> None:
        """Close the handle; the file stays."""
        os.close(self._handle)

    def _add(self, line: object) -> None:
        self._write((json.dumps(line) + "\n").encode())

    def _write(self, text: bytes) -> None:
        try:
            if os.write(self._handle, text) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise as_disk_fault(error, self._path) from error

    def _sync(self) -> None:
        try:
            os.fsync(self._handle)
            fsync_folder(self._path.parent)
        except OSError as error:
            raise as_disk_fault(error, self._path) from error


def read_ledger(folder: Path, copy: Copy) -> Mapping[str, Mapping[int, str]] | None:
    """Digests of the chunks that the ledger of this copy names, by file and number; None without such a ledger."""
    try:
        first, *lines = (folder / LEDGER_FILE).read_bytes().splitlines()
        if json.loads(first) != copy.header():
            return None
    except (*_NO_FILE, ValueError, RecursionError):
        return None
    noted: dict[str, dict[int, str]] = {}
    for line in lines:
        try:
            path, number, digest = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            continue  # cut off by a kill
        if isinstance(path, str) and isinstance(number, int) and isinstance(digest, str):
            noted.setdefault(path, {})[number] = digest
    return noted


def named_files(folder: Path) -> frozenset[str] | None:
    """Files in `folder` that the ledger of any copy names, never a path outside; None without a ledger of
    Slipway's."""
    try:
        text = (folder / LEDGER_FILE).read_bytes()
        if not text:  # killed before the first line, and so before any file
            return frozenset()
        header = json.loads(text.splitlines()[0])
        if header["schema"] != _SCHEMA:
            return None
        paths = [path for path, _ in header["files"]]
    except (*_NO_FILE, ValueError, TypeError, KeyError, RecursionError):
        return None
    return frozenset(filter(is_file_name, paths))
