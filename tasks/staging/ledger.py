"""What an unfinished copy has written so far: one line for each chunk, added when the chunk is in its place.

A line is no proof. Whoever goes on reads the chunk and compares: after a power cut a line may be there without its
bytes.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks.core.files import as_disk_full, fsync_folder

LEDGER_FILE = "ledger.jsonl"
_SCHEMA = "slipway.ledger/1"


@dataclass(frozen=True)
class Copy:
    """What is copied into what: a ledger of another copy is of no use."""

    source: str
    source_digest: str
    chunk_bytes: int
    layout: str

    def header(self) -> dict[str, str | int]:
        """The ledger's first line."""
        return {"schema": _SCHEMA, **self.__dict__}


class Ledger:
    """Chunks that are in their place, by file and number. Threads may add to it at once."""

    def __init__(self, path: Path, handle: int) -> None:
        self._path = path
        self._handle = handle

    @classmethod
    def begin(cls, folder: Path, copy: Copy) -> Ledger:
        """Go on with the ledger of this copy, or begin one. Raises `DiskFullError`."""
        path = folder / LEDGER_FILE
        if read_ledger(folder, copy) is None:
            path.unlink(missing_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        ledger = cls(path, handle)
        size = os.fstat(handle).st_size
        if not size:
            ledger._add(copy.header())
            fsync_folder(folder)
        elif os.pread(handle, 1, size - 1) != b"\n":  # the last line was cut off by a kill
            os.write(handle, b"\n")
        return ledger

    def note(self, path: str, number: int, digest: str) -> None:
        """The chunk of that file is written. Raises `DiskFullError`."""
        self._add([path, number, digest])

    def close(self) -> None:
        """Give the handle back; the file stays."""
        os.close(self._handle)

    def _add(self, line: object) -> None:
        try:
            text = (json.dumps(line) + "\n").encode()
            if os.write(self._handle, text) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise as_disk_full(error, self._path) from error


def read_ledger(folder: Path, copy: Copy) -> Mapping[str, Mapping[int, str]] | None:
    """Digests of the chunks that the ledger of this copy names, by file and number; None without such a ledger."""
    try:
        first, *lines = (folder / LEDGER_FILE).read_bytes().splitlines()
        if json.loads(first) != copy.header():
            return None
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
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


def named_files(folder: Path) -> set[str]:
    """Files in `folder` that a ledger of any copy names; nothing outside of it."""
    found = set()
    for line in (folder / LEDGER_FILE).read_bytes().splitlines()[1:]:
        try:
            path = json.loads(line)[0]
        except (ValueError, TypeError, IndexError, KeyError, RecursionError):
            continue
        if isinstance(path, str) and path == Path(path).name and path != "..":
            found.add(path)
    return found
