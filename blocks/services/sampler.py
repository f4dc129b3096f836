"""Starts and ends the leak sampler of a service (`tasks/leaks/daemon.py`), which outlives flows."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path

import psutil

from blocks.services.kept_code import SAMPLER, keep_daemons, lasting_python
from blocks.services.service_processes import ServiceProcesses, processes_of, running_service
from tasks.core.child_environment import child_environment
from tasks.core.errors import CommandError, SlipwayError
from tasks.core.files import open_private, write_atomically
from tasks.core.progress import say
from tasks.core.release import Release, ServiceFolder, ServiceState
from tasks.core.settings import Settings
from tasks.core.verdicts import StageName
from tasks.engines.card import read_card

_POLL_S = 0.02
_WAIT_S = 10.0


def sample_service(folder: ServiceFolder, state: ServiceState, release: Release) -> int:
    """See to it that the engine of a running service is sampled; the sampler's process id."""
    running = running_service(folder, state)
    period_s, metrics = release.spec.checks.sample_period_s, read_card(release.engine).metrics
    return start_sampler(folder, processes_of(folder, state, running, period_s=period_s, metrics=metrics))


def see_to_sampler(folder: ServiceFolder) -> None:
    """A service that serves has not failed if its sampler did: it is said, and the nightly check tries again."""
    try:
        sample_service(folder, *folder.serving())
    except (SlipwayError, OSError) as error:
        say(StageName.ROLLOUT, f"memory is not sampled until the next check: {error}")


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
    while not _has_begun(folder, child.pid):
        if child.poll() is not None and (running := sampler_pid(folder)) is not None:
            return running  # someone was quicker
        if child.poll() is not None or time.monotonic() > deadline:
            raise CommandError(
                f"the leak sampler of {folder.name} did not start",
                detail=log.read_text(errors="replace") or None,
            )
        time.sleep(_POLL_S)
    return child.pid


def _has_begun(folder: ServiceFolder, pid: int) -> bool:
    """Whether that sampler has taken the lock: it writes its id there."""
    try:
        return (folder.samples / "sampler.lock").read_text().strip() == str(pid)
    except (OSError, ValueError):
        return False


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
    """The running sampler, found by its command line; None if there is none. Its lock file may be lost or damaged."""
    for process in psutil.process_iter():
        try:
            argv = process.cmdline()
            if _samples(argv, folder) and process.status() != psutil.STATUS_ZOMBIE:
                return process.pid
        except psutil.Error:
            continue
    return None


def _samples(argv: list[str], folder: ServiceFolder) -> bool:
    """Whether that is a command line of the service's sampler, of this version of Slipway or one before."""
    script, last = (Path(argv[-2]).name, argv[-1]) if len(argv) > 1 else ("", "")
    return script in (SAMPLER, "daemon.py") and os.path.realpath(last) == os.path.realpath(folder.root)
