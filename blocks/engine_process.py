"""A serving engine as a child process, for as long as a measurement takes."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from blocks.engine_api import EngineApi
from blocks.ports import LOCALHOST, free_port
from blocks.process import last_lines, leashed
from tasks.core.cancellation import current
from tasks.core.errors import EngineDiedError, EngineError
from tasks.core.prefetch import Prefetch, no_prefetch
from tasks.engines.base import CommandLine

_POLL_S = 0.02


@dataclass(frozen=True)
class RunningEngine:
    """An engine that has answered a completion. `leash_pid` is the root of its process tree."""

    base_url: str
    leash_pid: int
    start_s: float
    """Seconds from process start to the first completion."""
    log: Path
    child: subprocess.Popen[bytes]

    def check(self, *, wait_s: float = 0.0) -> None:
        """Raise `EngineDiedError` if the engine's process has ended, or ends within `wait_s`.

        A connection breaks a moment before the process that held it is gone.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self.child.wait(timeout=wait_s)
            raise EngineDiedError(
                f"the engine died while serving (exit status {status})",
                status=status,
                fix=f"read {self.log}",
                detail=last_lines(self.log.read_text(errors="replace")),
            )


@contextlib.contextmanager
def serve(
    command: CommandLine,
    *,
    served_name: str,
    log: Path,
    start_timeout_s: float = 120.0,
    maps: Sequence[Path] = (),
    prefetch: Prefetch = no_prefetch,
) -> Iterator[RunningEngine]:
    """Start the engine on a free port of the loopback and yield once it has really completed a prompt.

    `maps` are files that it will map: they are prefetched beside its start.
    Raises `EngineError` with the last lines of `log` if it dies, or is not ready within `start_timeout_s`.
    The engine is dead when the block is left.
    """
    port = free_port()
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with (
        log.open("wb") as output,
        leashed(
            command.at(LOCALHOST, port), stdout=output, stderr=output, env=command.env_at(LOCALHOST, port)
        ) as child,
        EngineApi(f"http://{LOCALHOST}:{port}") as api,
    ):
        with prefetch(maps):
            wait_until_ready(api, child, log, start_timeout_s)
            api.complete(served_name, "The", 1)
        yield RunningEngine(api.base_url, child.pid, time.monotonic() - start, log, child)


def wait_until_ready(api: EngineApi, child: subprocess.Popen[bytes], log: Path, timeout_s: float) -> None:
    """Poll `/health` until it answers 200. Raises `EngineError` as `serve` does."""
    deadline = time.monotonic() + timeout_s
    while not api.ready():
        current().check()
        if child.poll() is not None:
            raise EngineDiedError(
                f"the engine died while starting (exit status {child.returncode})",
                status=child.returncode,
                fix=f"read {log}",
                detail=last_lines(log.read_text(errors="replace")),
            )
        if time.monotonic() > deadline:
            raise EngineError(
                f"the engine was not ready within {timeout_s:.0f} s",
                fix=f"read {log}, or raise rollout.gate.start_timeout_s",
                detail=last_lines(log.read_text(errors="replace")),
            )
        time.sleep(_POLL_S)
