"""A process by what no clock and no reuse of its id changes."""

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

    `start_ticks` are clock ticks since the boot. The time of day would not do: the kernel's moves with every step
    of the clock, also that of a process that started long before.
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
