"""Memory of a running engine: of its process tree on the host, and on GPUs."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import psutil

_OOM_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
_FIELD = re.compile(r"^(VmHWM|VmSwap):\s+(\d+) kB$", re.MULTILINE)


def peak_host_bytes(guard_pid: int) -> int:
    """Most memory that the command under this guard ever held, bytes: resident and swapped, over its process tree.

    The kernel keeps each process's high-water mark, so peaks between two readings are not missed. Weights that are
    mapped from the file count: decoding reads all of them for every token. 0 if nothing runs any more.
    """
    return sum(peak_bytes(pid) for pid in command_pids(guard_pid))


def command_pids(guard_pid: int) -> list[int]:
    """The processes that run under a process guard; the guard itself is not the engine."""
    try:
        return [child.pid for child in psutil.Process(guard_pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def peak_bytes(pid: int) -> int:
    """One process's high-water mark plus its swapped memory, bytes; 0 if it has ended."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        return sum(1024 * int(kilobytes) for _, kilobytes in _FIELD.findall(status))
    return 0


def kernel_kills() -> int | None:
    """How many processes the kernel has killed for lack of memory since the host started, in all control groups.

    None if it keeps no such count. The count is raised before the signal is sent.
    """
    with contextlib.suppress(OSError):
        if found := _OOM_KILLS.search(Path("/proc/vmstat").read_text()):
            return int(found[1])
    return None


def kernel_kills_since(before: int | None) -> int | None:
    """How many since the count was `before`; None if either is not known."""
    now = kernel_kills()
    return None if now is None or before is None else now - before
