"""Memory of a running engine: of its process tree on the host, and on GPUs."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import psutil

from blocks.nvml import gpu_bytes_of

_FIELD = re.compile(r"^(VmHWM|VmSwap):\s+(\d+) kB$", re.MULTILINE)


def peak_host_bytes(leash_pid: int) -> int:
    """Most memory that the command on this leash ever held, bytes: resident and swapped, over its process tree.

    The kernel keeps each process's high-water mark, so nothing between two looks is missed. Weights that are
    mapped from the file count: decoding reads all of them for every token. 0 when nothing runs any more.
    """
    return sum(_peak_bytes(pid) for pid in command_pids(leash_pid))


def gpu_bytes(leash_pid: int) -> int:
    """Memory that the command on this leash holds on GPUs now, bytes."""
    return gpu_bytes_of(command_pids(leash_pid))


def command_pids(leash_pid: int) -> list[int]:
    """The processes that run on a leash; the leash itself is not the engine."""
    try:
        return [child.pid for child in psutil.Process(leash_pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _peak_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        return sum(1024 * int(kilobytes) for _, kilobytes in _FIELD.findall(_status(pid)))
    return 0


def _status(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()
