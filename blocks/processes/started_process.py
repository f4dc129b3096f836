"""Identify a process independently of clocks and of reused ids."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from tasks.leaks.daemon import PROC, read_stat

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class StartedProcess(BaseModel):
    """A process by id, boot and start, so that a reused id is not mistaken for it.

    `start_ticks` are clock ticks since boot. The time of day would not work: when the clock is set, the
    kernel's start times move too, even of processes that started long before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    boot_id: str
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> StartedProcess:
        """The running process of that id. Raises `psutil.NoSuchProcess`."""
        found = read_stat(PROC / str(pid))
        if found is None:
            raise psutil.NoSuchProcess(pid)
        return cls(pid=pid, boot_id=_BOOT_ID.read_text().strip(), start_ticks=found[1])

    def find(self) -> psutil.Process | None:
        """The process, if it still runs."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            if self == StartedProcess.of(self.pid) and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None
