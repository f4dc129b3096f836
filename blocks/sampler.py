"""Starts and ends the leak sampler of a service (`tasks/leaks/daemon.py`), which outlives flows."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import time
from pathlib import Path

import psutil

from blocks.kept_code import SAMPLER, keep_daemons, lasting_python
from blocks.service_processes import ServiceProcesses, processes_of, running_service
from tasks.core.child_environment import child_environment
from tasks.core.errors import CommandError
from tasks.core.files import open_private, write_atomically
from tasks.core.release import Release, ServiceFolder, ServiceState
from tasks.core.settings import Settings

_POLL_S = 0.02
_WAIT_S = 10.0


def sample_service(folder: ServiceFolder, state: ServiceState, release: Release) -> int:
    """See to it that the engine of a running service is sampled; the sampler's process id."""
    running = running_service(folder, state)
    period_s = release.spec.checks.sample_period_s
    return start_sampler(folder, processes_of(folder, state, running, period_s=period_s))


def start_sampler(folder: ServiceFolder, processes: ServiceProcesses) -> int:
    """See to it that one sampler runs and samples these processes; its process id. Harmless to repeat."""
    folder.samples.mkdir(parents=True, exist_ok=True)
    write_atomically(folder.root / "processes.json", processes.model_dump_json(exclude_none=True))
    if (running := sampler_pid(folder)) is not None:
        return running
    log = folder.samples / "sampler.log"
    script = keep_daemons(Settings.load().home) / SAMPLER
    with open_private(log, "wb") as output:
        child = subprocess.Popen(
            [lasting_python(), "-I", "-S", str(script), str(folder.root)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=child_environment(os.environ),
            start_new_session=True,
        )
    deadline = time.monotonic() + _WAIT_S
    while (running := sampler_pid(folder)) is None:
        if child.poll() is not None or time.monotonic() > deadline:
            raise CommandError(
                f"the leak sampler of {folder.name} did not start",
                detail=log.read_text(errors="replace") or None,
            )
        time.sleep(_POLL_S)
    return running


def stop_sampler(folder: ServiceFolder) -> bool:
    """End the sampler and wait until it has ended; whether one ran. Its samples are kept."""
    pid = sampler_pid(folder)
    if pid is None:
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        process.terminate()
        try:
            process.wait(timeout=_WAIT_S)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(timeout=_WAIT_S)
    return True


def sampler_pid(folder: ServiceFolder) -> int | None:
    """The running sampler: who holds the lock; None if nobody does."""
    path: Path = folder.samples / "sampler.lock"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _sampler_named(os.pread(handle, 64, 0), folder)
    else:
        return None
    finally:
        os.close(handle)


def _sampler_named(text: bytes, folder: ServiceFolder) -> int | None:
    """The process of that id if it is the service's sampler, of whichever version of Slipway.

    The holder of the lock may not have written its own id yet.
    """
    try:
        command = Path(f"/proc/{int(text)}/cmdline").read_bytes().split(b"\0")
    except (ValueError, OSError):
        return None
    return int(text) if str(folder.root).encode() in command else None
