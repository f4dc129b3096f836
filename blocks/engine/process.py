"""A serving engine as a child process, for as long as a measurement takes."""

from __future__ import annotations

import contextlib
import errno
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from blocks.engine.api import EngineApi
from blocks.processes.ports import LOCALHOST, free_port
from blocks.processes.process import guarded, last_lines
from blocks.processes.process_memory import kernel_kills, kernel_kills_since
from tasks.core.asking import ask
from tasks.core.cancellation import current
from tasks.core.child_environment import Needs
from tasks.core.disk_faults import as_disk_fault, says_disk_full
from tasks.core.errors import EngineDiedError, EngineError, EngineHungError, EngineStartError
from tasks.core.files import open_private
from tasks.core.model_task import Task
from tasks.core.prefetch import Prefetch, no_prefetch
from tasks.core.serving import ServingConfig
from tasks.engines.base import CommandLine
from tasks.engines.failures import name_end
from tasks.engines.out_of_memory import memory_error

_POLL_S = 0.02
_DYING_S = 2.0
"""A connection breaks a moment before the process that held it is gone: this long at the most."""
_SILENCE_S = 60.0


_NOT_WHOLE = "the model is not whole"
"""As `tasks/engines/worker/transformers_server.py` begins its refusal."""


@dataclass(frozen=True)
class EngineChild:
    """The process of an engine, ready or not.

    `killed_before` is the kernel's count of kills at its start. Where a connection broke, the process is given
    `dying_s` to be gone: it was the one or the other that failed.
    """

    child: subprocess.Popen[bytes]
    log: Path
    killed_before: int | None
    dying_s: float = _DYING_S

    def check(self, doing: str, *, ready: bool, wait_s: float = 0.0) -> None:
        """Raise `EngineDiedError` if the process has ended, or ends within `wait_s`; `DiskFullError` if of that."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self.child.wait(timeout=wait_s)
            if says_disk_full(self.last_words()):
                raise as_disk_fault(OSError(errno.ENOSPC, ""), self.log)
            raise EngineDiedError(
                f"the engine died {doing} ({name_end(status)}){self._why()}",
                status=status,
                ready=ready,
                kernel_kills=kernel_kills_since(self.killed_before),
                fix=f"read {self.log}",
                detail=self.last_words(),
            )

    def _why(self) -> str:
        """What a server of ours says as its last word about the model; empty if it says nothing."""
        last = self.last_words().rpartition("\n")[2].strip()
        return f": {last}" if last.startswith(_NOT_WHOLE) else ""

    def last_words(self) -> str:
        """The last lines of its log, and before them its error about memory, if there was one.

        An engine of several processes says what went wrong in one of them, and then at length in the others that that
        one is gone.
        """
        text = self.log.read_text(errors="replace")
        last, error = last_lines(text), memory_error(text)
        return f"{error}\n…\n{last}" if error and error not in last else last


@dataclass(frozen=True)
class RunningEngine:
    """An engine that has answered a completion. `guard_pid` is the root of its process tree.

    `gpu_memory_before` is what GPUs had in use before its start, bytes, where its own use is the difference to that.
    """

    base_url: str
    start_s: float
    """Seconds from process start to the first completion."""
    process: EngineChild
    gpu_memory_before: Mapping[int, int] = field(default_factory=dict)

    @property
    def guard_pid(self) -> int:
        """Process id of the guard that the engine runs under."""
        return self.process.child.pid

    def check(self, *, dying: bool = False) -> None:
        """Raise `EngineDiedError` if the engine's process has ended; with `dying`, if it does so within `dying_s`."""
        self.process.check("while serving", ready=True, wait_s=self.process.dying_s if dying else 0.0)


@contextlib.contextmanager
def serve(
    command: CommandLine,
    *,
    served_name: str,
    log: Path,
    start_timeout_s: float = 120.0,
    silence_s: float = _SILENCE_S,
    dying_s: float = _DYING_S,
    maps: Sequence[Path] = (),
    prefetch: Prefetch = no_prefetch,
    config: ServingConfig | None = None,
) -> Iterator[RunningEngine]:
    """Start the engine on a free port of the loopback and yield once it has really answered.

    It is asked to complete a prompt, or what `config` says that its model is for.
    `maps` are files, or folders of files, that it maps: they are prefetched while it starts. Raises `EngineError`
    with the last lines of `log`: `EngineDiedError` if it dies, `EngineStartError` if it is not ready within
    `start_timeout_s`, `EngineHungError` if its first completion brings no byte within `silence_s`. The engine is
    dead when the block is left.
    """
    port = free_port()
    killed_before = kernel_kills()
    start = time.monotonic()
    with (
        open_private(log, "wb") as output,
        guarded(
            command.at(LOCALHOST, port), stdout=output, stderr=output, needs=(Needs.COMPUTE,), env=command.env
        ) as child,
        EngineApi(f"http://{LOCALHOST}:{port}", timeout_s=silence_s) as api,
    ):
        process = EngineChild(child, log, killed_before, dying_s)
        with prefetch(maps):
            wait_until_ready(api, process, start_timeout_s)
            try:
                if config is None or config.task is Task.GENERATE:
                    api.complete(served_name, "The", 1)
                else:
                    ask(api, config, "The", 1)
            except EngineError as error:
                wait_s = 0.0 if isinstance(error, EngineHungError) else dying_s
                process.check("at its first completion", ready=True, wait_s=wait_s)
                raise
        yield RunningEngine(api.base_url, time.monotonic() - start, process)


def wait_until_ready(api: EngineApi, process: EngineChild, timeout_s: float) -> None:
    """Poll `/health` until it answers 200. Raises `EngineError` as `serve` does."""
    deadline = time.monotonic() + timeout_s
    while not api.ready():
        current().check()
        process.check("while starting", ready=False)
        if time.monotonic() > deadline:
            raise EngineStartError(
                f"the engine was not ready within {timeout_s:g} s",
                fix=f"read {process.log}, or raise rollout.gate.start_timeout_s",
                detail=process.last_words(),
            )
        time.sleep(_POLL_S)
