"""Reads what the sampler wrote. It changes nothing."""

from __future__ import annotations

from pathlib import Path

from tasks.leaks.daemon import begun
from tasks.leaks.models import Series
from tasks.leaks.series import parse_series


def read_runs(samples: Path) -> list[Series]:
    """The series of each run of the engine, oldest first; the last line may be half written yet."""
    runs: list[Series] = []
    for path in sorted(samples.glob("*.csv"), key=begun):
        text = path.read_text()
        runs += parse_series(text[: text.rfind("\n") + 1], str(path))
    return runs
