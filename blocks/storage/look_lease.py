"""Allow one look at the model registry at a time on this host, and end one that hangs."""

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
    """The process of a look, and when it began, in seconds by the monotonic clock."""

    process: StartedProcess
    began: float


@contextlib.contextmanager
def only_look(lease: Path, deadline_s: float) -> Iterator[None]:
    """Hold the lease for the duration of the block.

    A look that has held it for longer than `deadline_s` hangs: its process is killed. One that the kernel cannot
    kill keeps the old file, and this look uses a new one. Raises `BusyError` while another look is within its time.
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
    """Whether the open file still has that name: another look may have replaced it."""
    try:
        there = lease.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(handle), there)


def _note(handle: int) -> None:
    holder = Holder(process=StartedProcess.of(os.getpid()), began=time.monotonic())
    os.ftruncate(handle, 0)
    with contextlib.suppress(OSError):  # a full disk must not end a look
        os.pwrite(handle, holder.model_dump_json().encode(), 0)


def _end(lease: Path, deadline_s: float) -> None:
    """Kill the process of the look that holds the lease, if it hangs. Raises `BusyError` if it does not."""
    try:
        holder = Holder.model_validate_json(read_regular(lease, 1 << 12))
    except (ValidationError, FileNotFoundError):
        holder = None  # it has just begun
    if holder is None or time.monotonic() - holder.began < deadline_s:
        raise BusyError("another look at the registry is under way", fix="wait for it to end")
    process = holder.process.find()
    if process is not None and process.pid != os.getpid():
        say(StageName.REGISTRY, f"ended a look that had hung for {time.monotonic() - holder.began:.0f} s")
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, signal.SIGKILL)
    lease.unlink(missing_ok=True)
