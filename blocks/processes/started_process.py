"""Identify a process independently of clocks and of reused ids."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

from tasks.core.frozen import Frozen

_START_TICKS = 19
"""Of the fields of `/proc/PID/stat` behind the program's name (proc_pid_stat(5): starttime, the 22nd)."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class StartedProcess(Frozen):
    """A process by id, boot and start, so that a reused id is not taken for it.

    `start_ticks` are clock ticks since boot. The time of day would not work: when the clock is set, the
    kernel's start times move too, even of processes that started long before.
    """

    pid: int
    boot_id: str
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> StartedProcess:
        """The running process of that id. Raises `psutil.NoSuchProcess`."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except OSError:
            raise psutil.NoSuchProcess(pid) from None
        ticks = int(stat.rpartition(")")[2].split()[_START_TICKS])
        return cls(pid=pid, boot_id=_BOOT_ID.read_text().strip(), start_ticks=ticks)

    def find(self) -> psutil.Process | None:
        """The process, if it still runs."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            if self == StartedProcess.of(self.pid) and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None
