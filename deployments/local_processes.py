"""Servers and workers of one home, found among the running processes, independently of `local.json`."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from blocks.prefect.server import api_url, is_temporary, port_of_server
from blocks.processes.started_process import StartedProcess

WORKER = "slipway-local"
"""Name of the worker, which identifies its command."""

_NAMESPACES = ("pid", "net")


@dataclass(frozen=True)
class LocalProcess:
    """A server or a worker, and the API that it serves or uses."""

    name: Literal["server", "worker"]
    api_url: str
    process: StartedProcess


def local_processes(home: Path) -> list[LocalProcess]:
    """Processes that this user's `slipway up` started for that home and that still run, oldest first.

    A container may have a folder of the same name: processes in another container are skipped, as are the servers of
    single commands.
    """
    found: dict[int, tuple[int, LocalProcess]] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if (local := _local_process(process, home)) is not None:
                found[process.pid] = (process.ppid(), local)
    # A worker's child has the worker's command line until it executes its own.
    parents = [local for parent, local in found.values() if parent not in found]
    return sorted(parents, key=lambda local: local.process.start_ticks)


def _local_process(process: psutil.Process, home: Path) -> LocalProcess | None:
    """Raises `psutil.Error` or `OSError` for a process that has ended or belongs to another user."""
    command = process.cmdline()
    port = port_of_server(command)
    is_worker = command[2:4] == ["worker", "start"] and command[-2:] == ["--name", WORKER]
    if (port is None and not is_worker) or process.uids().effective != os.geteuid():
        return None
    environ = process.environ()
    if is_temporary(environ) or not _is_home(process.pid, environ.get("SLIPWAY_HOME", ""), home):
        return None
    started = StartedProcess.of(process.pid)
    if port is not None:
        return LocalProcess("server", api_url(port), started)
    return LocalProcess("worker", environ.get("PREFECT_API_URL", ""), started)


def _is_home(pid: int, named: str, home: Path) -> bool:
    """Whether the process was started with this home, outside a container."""
    there = Path("/proc", str(pid))
    alike = (Path("/proc/self/ns", kind).samefile(there / "ns" / kind) for kind in _NAMESPACES)
    return named != "" and all(alike) and Path(f"{there}/root{named}").samefile(home)
