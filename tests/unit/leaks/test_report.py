"""The leak check's answer for people."""

from __future__ import annotations

import re

import numpy as np
from figures import svg_of
from inline_snapshot import snapshot

from tasks.core.verdicts import LeakVerdict
from tasks.leaks import plan, report
from tasks.leaks.models import LeakRequest, LeakResult, Look, Series

START = 1_780_000_000.0


def leak(origin: float = START) -> LeakResult:
    """One gibibyte that doubles in two days, by Unix time."""
    t = np.arange(0, 48 * 3600, 600.0)
    run = Series(t_s=tuple(origin + t), bytes_=tuple(2**30 * (1 + t / t[-1])))
    return plan.judge([run], LeakRequest(limit_bytes=3 * 2**30))


def test_the_forecast_is_a_date() -> None:
    assert report.headline(leak()).startswith("+22.4 MB/h, out of memory at 2026-06-01 20:0")
    assert report.numbers(leak())["out_of_memory_at"].kind == "predicted"
    text = report.markdown(leak())
    assert text.startswith("# Leaks: confirmed\n\nthe floor grows by ")
    assert "Memory runs out at **2026-06-01" in text
    figure = svg_of(text)
    assert re.findall(r">([^<]+)</text>", figure) == snapshot(
        ["Floor of anonymous memory", "2,131", "1,132", "MB", "0", "44.5 h"]
    )
    assert text.count("| yes |") == 7, "the first of eight looks has too little data"


def test_a_series_of_its_own_clock_gets_seconds() -> None:
    assert " s" in report.headline(leak(origin=0.0)).rpartition("at ")[2]


def test_a_level_of_nothing_has_a_figure() -> None:
    run = Series(t_s=tuple(range(100)), bytes_=(0.0,) * 100)
    text = report.markdown(plan.judge([run], LeakRequest()))
    assert "nan" not in svg_of(text)


def test_a_look_with_too_little_data_says_so() -> None:
    look = Look(until_s=60, hit=False, why="too little data: 2 samples over 0.0 h")
    result = LeakResult(
        verdict=LeakVerdict.NONE,
        slope_bytes_per_s=0,
        oom_at_s=None,
        reason=look.why,
        span_s=60,
        samples=2,
        looks=(look,),
    )
    assert report.headline(result) == look.why
    assert report.markdown(result) == snapshot("""\
# Leaks: none

too little data: 2 samples over 0.0 h.

2 samples over 60 s. The sampler continues; the check runs every night.
""")
