"""Allow one check of the model registry at a time on this host, and end a check that hangs."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from blocks.processes.started_process import StartedProcess
from tasks.core.errors import BusyError
from tasks.core.files import read_regular, takes_lock
from tasks.core.frozen import Frozen
from tasks.core.progress import say
from tasks.core.verdicts import StageName


class Holder(Frozen):
    """The process of a check, and when it began, in seconds of the monotonic clock."""

    process: StartedProcess
    began: float


@contextlib.contextmanager
def only_look(lease: Path, deadline_s: float) -> Iterator[None]:
    """Hold the lease for the duration of the block.

    A check that has held it for longer than `deadline_s` hangs: its process is killed. If the kernel cannot kill it,
    it keeps the old file, and this check uses a new one. Raises `BusyError` while another check is within its time.
    """
    lease.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(lease, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if takes_lock(handle) and _is_named(handle, lease):
                _note(handle)
                yield
                return
            if _is_named(handle, lease):
                _end(lease, deadline_s)
        finally:
            os.close(handle)


def _is_named(handle: int, lease: Path) -> bool:
    """Whether the open file still has that name: another check may have replaced it."""
    try:
        there = lease.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(handle), there)


def _note(handle: int) -> None:
    holder = Holder(process=StartedProcess.of(os.getpid()), began=time.monotonic())
    os.ftruncate(handle, 0)
    with contextlib.suppress(OSError):  # a full disk must not end a check
        os.pwrite(handle, holder.model_dump_json().encode(), 0)


def _end(lease: Path, deadline_s: float) -> None:
    """Kill the process of the check that holds the lease, if it hangs. Raises `BusyError` if it does not."""
    try:
        holder = Holder.model_validate_json(read_regular(lease, 1 << 12))
    except (ValidationError, FileNotFoundError):
        holder = None  # it has just begun
    if holder is None or time.monotonic() - holder.began < deadline_s:
        raise BusyError("another check of the registry is still running", fix="wait for it to end")
    process = holder.process.find()
    if process is not None and process.pid != os.getpid():
        say(
            StageName.REGISTRY,
            f"killed a check that had been running for {time.monotonic() - holder.began:.0f} s",
        )
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, signal.SIGKILL)
    lease.unlink(missing_ok=True)
