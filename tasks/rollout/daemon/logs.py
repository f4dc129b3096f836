"""Log files that cannot fill a disk."""

from __future__ import annotations

import contextlib
import io
import os
import time
from pathlib import Path

from tasks.rollout.daemon.files import clear_place

KEPT_LOGS = 6
"""Engine logs kept in a service's folder: one per release, the newest."""


class BoundedLog:
    """Appends to `path`; at `max_bytes` what is there becomes `<path>.1`, replacing what that was.

    A log that cannot be opened, or is taken away, loses lines until it can be: a service does not end for its log.
    """

    def __init__(self, path: Path, max_bytes: int = 4 << 20) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self._file = self._open()

    def _open(self) -> io.FileIO:
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            clear_place(self.path, self.path.parent.parent)
            return self.path.open("ab", buffering=0)
        return Path(os.devnull).open("ab", buffering=0)

    def _is_lost(self) -> bool:
        try:
            return not os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except OSError:
            return True

    def write(self, data: bytes) -> None:
        """Append. A full disk loses log lines, never the service."""
        if self._file.closed:
            return
        if self._is_lost():
            self._file.close()
            self._file = self._open()
        try:
            if self._file.tell() + len(data) > self.max_bytes:
                self._turn_over()
            self._file.write(data)
        except OSError:
            return

    def _turn_over(self) -> None:
        """Begin a new file. Where it cannot be made, the old one stays open: the next line tries again."""
        with contextlib.suppress(FileNotFoundError):
            self.path.replace(self.path.with_name(self.path.name + ".1"))
        fresh = self.path.open("ab", buffering=0)
        self._file.close()
        self._file = fresh

    def say(self, line: str) -> None:
        """Append one line of Slipway's own, with the time in UTC."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.write(f"{now} slipway: {line}\n".encode())

    def close(self) -> None:
        """Write no more."""
        self._file.close()


def engine_log_path(folder: Path, release: str) -> Path:
    """Where the engine of one release logs."""
    return folder / f"engine-{release.removeprefix('sha256:')[:12]}.log"


def sweep_logs(folder: Path) -> None:
    """Remove the engine logs of releases that ran longest ago."""
    found = sorted(folder.glob("engine-*.log*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found[2 * KEPT_LOGS :]:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
