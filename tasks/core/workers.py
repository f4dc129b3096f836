"""Scripts that run inside other environments, as stages see them: how one is run, and its result."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class WorkerAnswer(Protocol):
    """The result of a worker."""

    @property
    def code(self) -> int: ...

    @property
    def stdout(self) -> str: ...

    @property
    def stderr(self) -> str: ...


class WorkerRunner(Protocol):
    """Runs code inside an environment."""

    def run_worker(self, python: Path, worker: Path, *arguments: str) -> WorkerAnswer:
        """Run a script to its end."""
