"""guidellm as a load generator: a child process in its own environment, whose report is read."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from blocks.processes.process import run
from tasks.batching.guidellm import (
    ENVIRONMENT,
    GuidellmReport,
    Target,
    closed_figures,
    command,
    longest_s,
    open_figures,
    read_report,
)
from tasks.core.child_environment import Needs
from tasks.core.errors import CommandError, EngineSlowError
from tasks.core.load import Load, LoadFigures, OpenLoad, Wait

_LONGER = 4
_START_S = 300.0
"""Most that it takes to import what it needs and to start its processes, on a busy host."""


@dataclass(frozen=True)
class Guidellm:
    """Loads one engine. `python` is that of guidellm's environment."""

    python: Path
    target: Target

    def run(self, load: Load) -> LoadFigures:
        """As `LoadClient.run`. Raises `CommandError` if guidellm itself fails.

        guidellm ends at a time and not when every client was answered: if the engine needs longer, it runs again.
        """
        while True:
            report = self._report(load)
            try:
                return closed_figures(report, load)
            except EngineSlowError:
                if longest_s(load) >= load.timeout_s:
                    raise
                longer = min(load.timeout_s, _LONGER * longest_s(load))
                load = load.model_copy(update={"max_s": longer})

    def run_open(self, load: OpenLoad) -> tuple[LoadFigures, tuple[Wait, ...]]:
        """As `LoadClient.run_open`. Raises `CommandError` if guidellm itself fails."""
        return open_figures(self._report(load))

    def _report(self, load: Load | OpenLoad) -> GuidellmReport:
        with tempfile.TemporaryDirectory(prefix="slipway-guidellm-") as folder:
            report = Path(folder) / "report.json"
            finished = run(
                command(self.python, self.target, load, report),
                timeout_s=_START_S + longest_s(load) + load.silence_s,
                needs=(Needs.COMPUTE,),
                env={**ENVIRONMENT, "HF_HOME": folder},
                cwd=Path(folder),
            )
            finished.check("the load by guidellm", fix="set tuning.load_generator to builtin")
            try:
                text = report.read_text()
            except OSError as error:
                raise CommandError(f"guidellm wrote no report: {error.strerror}") from error
        return read_report(text)
