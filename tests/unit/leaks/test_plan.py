"""The judge, on labelled series and on whatever else may come."""

from __future__ import annotations

import math
from collections import Counter

import memory_series
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_series import DAY_S, HOUR_S, Labelled, labelled_set

from tasks.core.verdicts import LeakVerdict
from tasks.leaks import plan, report
from tasks.leaks.models import LeakRequest, LeakResult, Series


def judge(series: Labelled, share: float = 1.0, **request: float) -> LeakResult:
    """The verdict on the first `share` of a series."""
    count = int(series.t_s.size * share)
    requests = None if series.requests is None else tuple(series.requests[:count])
    run = Series(t_s=tuple(series.t_s[:count]), bytes_=tuple(series.bytes_[:count]), requests=requests)
    return plan.judge([run], LeakRequest.model_validate(request))


def ramp(hours: float, growth: float = 1.0, step_s: float = 600.0) -> Series:
    """One gibibyte that grows by `growth` of itself, with a little noise."""
    t = np.arange(0, hours * HOUR_S, step_s)
    noise = np.random.default_rng(7).standard_normal(t.size) * 1e-3
    y = 2**30 * (1 + growth * t / (hours * HOUR_S) + noise)
    return Series(t_s=tuple(t), bytes_=tuple(y))


def test_labelled_series_are_told_apart() -> None:
    verdicts = [(series.leaks, judge(series).verdict) for series in labelled_set(4, seed=11)]
    count = Counter((leaks, verdict is LeakVerdict.CONFIRMED) for leaks, verdict in verdicts)
    precision = count[True, True] / (count[True, True] + count[False, True])
    recall = count[True, True] / (count[True, True] + count[True, False])
    assert precision >= 0.9
    assert recall >= 0.85


@pytest.mark.parametrize("shape", [memory_series.plateau, memory_series.steps, memory_series.load_cycle])
def test_what_trend_tests_fall_for_is_no_leak(shape: memory_series.Shape) -> None:
    """Each of these rises from its first to its last hour in some of its draws."""
    results = [judge(memory_series.draw(shape, seed)) for seed in range(5)]
    assert [result.verdict for result in results] == [LeakVerdict.NONE] * 5


def test_a_leak_is_suspected_before_it_is_confirmed() -> None:
    series = memory_series.draw(memory_series.linear, 3)
    seen = [judge(series, share).verdict for share in np.linspace(0.02, 1, 25)]
    order = [LeakVerdict.NONE, LeakVerdict.SUSPECTED, LeakVerdict.CONFIRMED]
    assert [
        verdict for index, verdict in enumerate(seen) if index == 0 or seen[index - 1] != verdict
    ] == order


@pytest.mark.parametrize(
    ("hours", "verdict"),
    [(20, LeakVerdict.SUSPECTED), (30, LeakVerdict.CONFIRMED), (80, LeakVerdict.CONFIRMED)],
)
def test_only_a_day_of_data_confirms(hours: float, verdict: LeakVerdict) -> None:
    assert plan.judge([ramp(hours)], LeakRequest()).verdict is verdict


def test_the_time_that_confirms_can_be_scaled() -> None:
    fast = ramp(1.0, step_s=5)
    assert plan.judge([fast], LeakRequest()).verdict is LeakVerdict.SUSPECTED
    assert plan.judge([fast], LeakRequest(confirm_after_s=1200)).verdict is LeakVerdict.CONFIRMED


def test_slope_and_forecast_are_those_of_the_series() -> None:
    result = plan.judge([ramp(48)], LeakRequest(limit_bytes=4 * 2**30))
    slope = 2**30 / (48 * HOUR_S)
    assert result.slope_bytes_per_s == pytest.approx(slope, rel=0.02)
    assert result.oom_at_s == pytest.approx(3 * 48 * HOUR_S, rel=0.02)
    assert "standard errors" in result.reason


def test_a_limit_already_passed_is_now() -> None:
    result = plan.judge([ramp(48)], LeakRequest(limit_bytes=2**30))
    assert result.oom_at_s == pytest.approx(48 * HOUR_S, abs=700)


def test_no_leak_has_no_forecast() -> None:
    result = plan.judge([ramp(48, growth=0.0)], LeakRequest(limit_bytes=2**31))
    assert (result.verdict, result.oom_at_s) == (LeakVerdict.NONE, None)


def test_a_small_trend_is_no_leak() -> None:
    result = plan.judge([ramp(48, growth=0.03)], LeakRequest())
    assert result.verdict is LeakVerdict.NONE
    assert "less than 5%" in result.reason


@pytest.mark.parametrize("ended", [0.3, 0.5, 0.6])
@pytest.mark.parametrize("daily", [0.0, 0.03])
def test_growth_that_has_ended_is_no_leak(ended: float, daily: float) -> None:
    t = np.arange(0, 4 * DAY_S, 600)
    noise = np.random.default_rng(1).normal(0, 0.01, t.size) + daily * np.sin(2 * np.pi * t / DAY_S)
    y = 2**30 * (1 + 0.1 * np.minimum(1, t / (ended * t[-1])) + noise)
    assert plan.judge([Series(t_s=tuple(t), bytes_=tuple(y))], LeakRequest()).verdict is LeakVerdict.NONE


def test_memory_given_back_is_no_leak() -> None:
    """Two days up, then down to where it began, and up again: the floor ends where it started."""
    t = np.arange(0, 4 * DAY_S, 600)
    y = 2**30 * (1 + 0.5 * (t % (2 * DAY_S)) / DAY_S + np.random.default_rng(1).normal(0, 1e-3, t.size))
    result = plan.judge([Series(t_s=tuple(t), bytes_=tuple(y))], LeakRequest())
    assert result.verdict is LeakVerdict.NONE
    assert result.reason == "the floor grows, but falls back again"


def test_only_the_run_since_the_last_restart_is_judged() -> None:
    result = plan.judge([ramp(72), ramp(72, growth=0.0)], LeakRequest())
    assert result.verdict is LeakVerdict.NONE


def test_load_is_not_taken_for_a_leak() -> None:
    """Traffic grows all week, and memory with it, by so many bytes for a request in flight."""
    t = np.arange(0, 5 * DAY_S, 600)
    rate = 5 + 4 * t / t[-1] + 0.5 * np.sin(2 * np.pi * t / DAY_S)
    y = 2**30 * (1 + 0.05 * rate) + np.random.default_rng(2).normal(0, 1e6, t.size)
    requests = np.cumsum(rate * 600)
    with_load = Series(t_s=tuple(t), bytes_=tuple(y), requests=tuple(requests))
    without = Series(t_s=tuple(t), bytes_=tuple(y))
    assert plan.judge([with_load], LeakRequest()).verdict is LeakVerdict.NONE
    assert plan.judge([without], LeakRequest()).verdict is not LeakVerdict.NONE


@pytest.mark.parametrize("count", [0, 1, 2, 39])
def test_too_little_data_says_so(count: int) -> None:
    run = Series(t_s=tuple(60.0 * i for i in range(count)), bytes_=(1e9,) * count)
    result = plan.judge([run], LeakRequest())
    assert result.verdict is LeakVerdict.NONE
    assert "there are no samples" in result.reason or "too little data" in result.reason


def test_no_runs_is_no_leak() -> None:
    assert plan.judge([], LeakRequest()).reason == "there are no samples"


anything = st.floats(allow_nan=True, allow_infinity=True, width=64)
usual = st.floats(0, 1e12)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.one_of(
        st.lists(st.tuples(anything, anything, anything), max_size=120),
        st.lists(st.tuples(usual, usual, usual), min_size=60, max_size=200),
    ),
    counted=st.booleans(),
    limit=st.none() | st.integers(1, 2**70),
    confirm_after_s=st.floats(1e-6, 1e12),
)
def test_every_series_gets_an_answer(
    rows: list[tuple[float, float, float]], counted: bool, limit: int | None, confirm_after_s: float
) -> None:
    t, y, requests = zip(*rows, strict=True) if rows else ((), (), ())
    run = Series(t_s=t, bytes_=y, requests=requests if counted else None)
    result = plan.judge([run], LeakRequest(limit_bytes=limit, confirm_after_s=confirm_after_s))
    assert math.isfinite(result.slope_bytes_per_s)
    assert result.oom_at_s is None or math.isfinite(result.oom_at_s)
    assert (result.verdict is LeakVerdict.NONE) == (not result.looks or not result.looks[-1].hit)
    assert report.markdown(result).startswith("# Leaks: ")
    assert LeakResult.model_validate_json(result.model_dump_json()) == result


@settings(deadline=None, max_examples=25)
@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-1e9, 1e9), stretch=st.floats(0.01, 100))
def test_units_do_not_decide(scale: float, shift: float, stretch: float) -> None:
    base = ramp(48, step_s=1200)
    other = Series(
        t_s=tuple(shift + stretch * t for t in base.t_s), bytes_=tuple(scale * value for value in base.bytes_)
    )
    result = plan.judge([other], LeakRequest(confirm_after_s=DAY_S * stretch))
    assert result.verdict is LeakVerdict.CONFIRMED
    expected = plan.judge([base], LeakRequest()).slope_bytes_per_s * scale / stretch
    assert result.slope_bytes_per_s == pytest.approx(expected, rel=1e-3)
