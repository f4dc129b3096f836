"""Progress of a deploy: a live table on a terminal, a line per event elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table

from deployments.cli.show import colour_of, coloured
from tasks.core import verdicts
from tasks.core.progress import Listener

_LAST_WORDS = {"cached", verdicts.FAULT, verdicts.CANCELLED} | {
    str(verdict)
    for kind in (
        verdicts.EnvironmentVerdict, verdicts.CompatibilityVerdict, verdicts.StagingVerdict,
        verdicts.ChoiceVerdict, verdicts.RolloutVerdict, verdicts.HealthVerdict,
    )
    for verdict in kind
}  # fmt: skip
"""How the last line of a stage begins (`tasks/core/stage.py`)."""


@dataclass
class _Row:
    """One stage: the time of its first line, its last line, and when it ended."""

    since: float
    line: str
    ended: float | None = None


class _Board:
    """The last line of each stage, with the time it has taken."""

    def __init__(self, start: float) -> None:
        self._start = start
        self._lock = threading.Lock()
        self._rows: dict[str, _Row] = {}
        self._spinner = Spinner("dots")

    def hear(self, stage: str, line: str) -> None:
        now = time.monotonic()
        with self._lock:
            row = self._rows.setdefault(stage, _Row(now, line))
            row.line = line
            row.ended = now if line.partition(":")[0] in _LAST_WORDS or line.startswith("ready") else None

    def __rich__(self) -> Table:
        now = time.monotonic()
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, justify="right")
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        with self._lock:
            for stage, row in self._rows.items():
                mark = _mark(row) if row.ended else self._spinner
                seconds = (row.ended or now) - row.since
                table.add_row(mark, f"[bold]{stage}[/bold]", f"{seconds:.1f} s", _line(row))
        table.add_row("", "[dim]all[/dim]", f"[dim]{now - self._start:.1f} s[/dim]", "")
        return table


def _mark(row: _Row) -> str:
    failed = colour_of(row.line.partition(":")[0]) == "red"
    return "[red]✗[/red]" if failed else "[green]✓[/green]"


def _line(row: _Row) -> str:
    word, colon, rest = row.line.partition(":")
    return f"{coloured(word)}{colon}{escape(rest)}" if row.ended and colon else escape(row.line)


@contextmanager
def show_progress(console: Console) -> Iterator[Listener]:
    """A listener whose lines are shown on `console` until the block is left."""
    start = time.monotonic()
    if console.is_terminal:
        board = _Board(start)
        with Live(board, console=console, refresh_per_second=8, transient=True):
            yield board.hear
        return

    def print_line(stage: str, line: str) -> None:
        console.print(
            f"[{time.monotonic() - start:6.1f} s] {stage}: {line}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    yield print_line
