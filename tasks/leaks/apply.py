"""Reads what the sampler wrote, and judges it. It changes nothing."""

from __future__ import annotations

from pathlib import Path

from tasks.core.errors import WrongUseError
from tasks.core.progress import say
from tasks.core.verdicts import StageName
from tasks.leaks import plan
from tasks.leaks.daemon import run_files
from tasks.leaks.models import LeakRequest, LeakResult, Series
from tasks.leaks.series import parse_series


def read_runs(samples: Path) -> list[Series]:
    """The series of each run of the engine, oldest first; the last line may still be incomplete.

    A damaged file is skipped, and a message says so. If the newest file is damaged, `WrongUseError` is raised,
    because an older run must not be judged in its place.
    """
    runs: list[Series] = []
    files = run_files(samples)
    for path in files:
        try:
            runs += _read(path)
        except WrongUseError as error:
            if path == files[-1]:
                raise
            say(StageName.LEAKS, f"an earlier run is skipped: {error.what}")
    return runs


def damage(samples: Path) -> str | None:
    """Why the newest run cannot be read; None if it can."""
    try:
        for path in run_files(samples)[-1:]:
            _read(path)
    except WrongUseError as error:
        return error.what
    return None


def _read(path: Path) -> list[Series]:
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:  # the sampler keeps the number of files small
        return []
    return parse_series(text[: text.rfind("\n") + 1], str(path))


def judge_samples(samples: Path, request: LeakRequest) -> LeakResult:
    """The verdict on what the sampler has written so far."""
    try:
        runs = read_runs(samples)
    except WrongUseError as error:
        return plan.unjudged(f"the samples of the running engine cannot be read: {error.what}")
    return plan.judge(runs, request)
