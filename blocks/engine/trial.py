"""Run code with an environment's Python: worker scripts, and the engine itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from blocks.engine.api import EngineApi
from blocks.engine.process import serve
from blocks.host.nvml import read_nvml
from blocks.processes.process import Finished, run
from tasks.core.child_environment import Needs
from tasks.engines.base import CommandLine

_WORKER_TIMEOUT_S = 300.0
_ALIVE_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class FirstCompletion:
    """An engine's first completion; `start_s` is the time from the start of its process."""

    start_s: float
    text: str
    output_tokens: int


class EnvironmentTrial:
    """Start an environment's Python in child processes, isolated from this process's own packages."""

    @property
    def has_gpu(self) -> bool:
        """Whether the driver lists a GPU."""
        return bool(read_nvml().gpus)

    def alive(self, python: Path) -> bool:
        """Whether that Python runs at all."""
        if not python.exists():
            return False
        return run([python, "-I", "-c", ""], timeout_s=_ALIVE_TIMEOUT_S, needs=(Needs.COMPUTE,)).code == 0

    def run_worker(self, python: Path, worker: Path, *arguments: str) -> Finished:
        """Run a script to its end. Raises `CommandError` when it takes longer than five minutes."""
        return run([python, "-I", worker, *arguments], timeout_s=_WORKER_TIMEOUT_S, needs=(Needs.COMPUTE,))

    def first_completion(
        self, command: CommandLine, *, served_name: str, log: Path, prompt: str, tokens: int, timeout_s: float
    ) -> FirstCompletion:
        """Start an engine, let it complete a prompt, end it. Raises `EngineError`."""
        with (
            serve(command, served_name=served_name, log=log, start_timeout_s=timeout_s) as engine,
            EngineApi(engine.base_url) as api,
        ):
            answer = api.complete(served_name, prompt, tokens)
            return FirstCompletion(engine.start_s, answer.text, answer.output_tokens)
