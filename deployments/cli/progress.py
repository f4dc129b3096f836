"""What a deploy looks like while it runs: a live table on a terminal, a line per event elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table

from tasks.core.progress import Listener


class _Board:
    """The last line of each stage, and when the stage was first heard of."""

    def __init__(self, start: float) -> None:
        self._start = start
        self._lock = threading.Lock()
        self._lines: dict[str, tuple[float, str]] = {}
        self._spinner = Spinner("dots")

    def hear(self, stage: str, line: str) -> None:
        with self._lock:
            since = self._lines.get(stage, (time.monotonic(), ""))[0]
            self._lines[stage] = (since, line)

    def __rich__(self) -> Table:
        table = Table.grid(padding=(0, 2))
        with self._lock:
            for stage, (since, line) in self._lines.items():
                table.add_row(f"{time.monotonic() - since:6.1f} s", f"[bold]{stage}[/bold]", line)
        table.add_row(f"{time.monotonic() - self._start:6.1f} s", self._spinner, "")
        return table


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
        console.print(f"[{time.monotonic() - start:6.1f} s] {stage}: {line}", markup=False, highlight=False)

    yield print_line
