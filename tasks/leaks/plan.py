"""Is there a leak, and when does memory run out? Pure.

One positive test is not enough: caches fill and load varies, so a nightly check would sooner or later raise a false
alarm. So a series is judged as it would have been while it grew, in repeated looks at its prefixes: the last look
decides between none and suspected, and three hits in a row, the last one included, confirm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tasks.core.verdicts import LeakVerdict
from tasks.leaks.floor import Floats, Floor, Trend, floor_of, trend_of
from tasks.leaks.models import LeakRequest, LeakResult, Look, Series

SIGNIFICANCE = 3.0
"""Standard errors by which the slope must differ from zero."""
MIN_GROWTH = 0.05
"""Growth over the window, relative to the level, below which a trend is ignored."""
RECENT_SHARE = 0.3
"""Share of the slope that must remain in the recent half of the window."""
HITS_TO_CONFIRM = 3
LOOKS_PER_CONFIRMATION = 4
"""Looks within the time that it takes to confirm; fewer for a long series, at most `MAX_LOOKS`."""
MAX_LOOKS = 32
HOUR_S = 3600.0


def judge(runs: Sequence[Series], request: LeakRequest) -> LeakResult:
    """The verdict on the latest run of the process; earlier runs, before a restart, are not used.

    Every series gets an answer: samples that are not finite numbers are dropped, and time is sorted.
    """
    if not runs:
        return unjudged("there are no samples")
    t, y, requests = _clean(runs[-1])
    if t.size == 0:
        return unjudged("there are no samples")
    looks: list[Look] = []
    floor: Floor | None = None
    for end in _ends(t, request.confirm_after_s):
        count = int(np.searchsorted(t, end, side="right"))
        look, seen = look_at(t[:count], y[:count], None if requests is None else requests[:count])
        floor = floor if looks else seen
        looks.append(look)
        if not look.hit:
            break  # looks before a miss do not count
    looks.reverse()
    span = float(t[-1] - t[0])
    verdict = _verdict(looks, span, request)
    last = looks[-1]
    forecast = None
    if verdict is not LeakVerdict.NONE and request.limit_bytes is not None:
        forecast = _out_of_memory(t, y, last, request.limit_bytes)
    return LeakResult(
        verdict=verdict,
        slope_bytes_per_s=last.slope_bytes_per_s,
        oom_at_s=forecast,
        reason=_reason(verdict, looks, span, request),
        span_s=span,
        samples=int(t.size),
        looks=tuple(looks),
        floor=() if floor is None else tuple(zip(floor.t.tolist(), floor.y.tolist(), strict=True)),
    )


def unjudged(reason: str) -> LeakResult:
    """The verdict if there is nothing to judge, and why."""
    return LeakResult(verdict=LeakVerdict.NONE, slope_bytes_per_s=0.0, oom_at_s=None, reason=reason)


def look_at(t: Floats, y: Floats, requests: Floats | None) -> tuple[Look, Floor | None]:
    """One look at a series in ascending time, and its floor (None: too little data)."""
    until = float(t[-1])
    floor = floor_of(t, y, requests)
    if floor is None:
        why = f"too little data: {t.size} sample{'s'[: t.size != 1]} over {(until - t[0]) / HOUR_S:.1f} h"
        return Look(until_s=until, hit=False, why=why), None
    trend = trend_of(floor)
    level = float(np.median(floor.y))
    window = (floor.t[-1] - floor.t[0]) * (1 - trend.onset)
    growth = trend.slope * window / level if level > 0 else 0.0
    why_not = _why_not(trend, growth, floor)
    look = Look(
        until_s=until,
        hit=why_not is None,
        why=why_not or "",
        structure=trend.structure,
        onset=trend.onset,
        slope_bytes_per_s=trend.slope,
        slope_error=trend.error,
        growth=growth,
        level_bytes=max(0.0, level),
    )
    return look, floor


def _why_not(trend: Trend, growth: float, floor: Floor) -> str | None:
    if trend.slope <= 0 or trend.slope < SIGNIFICANCE * trend.error:
        return f"the floor shows no trend above its noise ({_EXPLAINED[trend.structure]})"
    if growth < MIN_GROWTH:
        return f"the floor grew by {growth:.1%} of its level, less than {MIN_GROWTH:.0%}"
    half = floor.t.size // 2
    if _slope(floor.t[half:], trend.cleaned[half:]) < RECENT_SHARE * trend.slope:
        return "the floor has stopped growing"
    if _slope(floor.t, floor.y) < RECENT_SHARE * trend.slope:
        return "the floor grows, but falls back again"
    return None


def _slope(t: Floats, y: Floats) -> float:
    """Least squares."""
    return float(np.polyfit(t - t[0], y, 1)[0])


_EXPLAINED = {
    "straight": "a level floor explains it",
    "saturating": "a cache that fills up explains it",
    "steps": "one or two steps explain it",
    "onset": "a level floor explains it",
}


def _clean(series: Series) -> tuple[Floats, Floats, Floats | None]:
    t = np.asarray(series.t_s, float)
    y = np.asarray(series.bytes_, float)
    count = None if series.requests is None else np.asarray(series.requests, float)
    good = np.isfinite(t) & np.isfinite(y) & (np.abs(t) < 1e18) & (np.abs(y) < 1e18)
    if count is not None and not np.all(np.isfinite(count[good]) & (np.abs(count[good]) < 1e18)):
        count = None
    order = np.flatnonzero(good)[np.argsort(t[good], kind="stable")]
    return t[order], y[order], None if count is None else np.maximum.accumulate(count[order])


def _ends(t: Floats, confirm_after_s: float) -> Iterator[float]:
    """Ends of the prefixes that are judged, the whole series first."""
    span = float(t[-1] - t[0])
    step = max(confirm_after_s / LOOKS_PER_CONFIRMATION, span / MAX_LOOKS)
    yield float(t[-1])
    for number in range(int(span / step), 0, -1):
        if span - number * step > step / 4:
            yield float(t[0]) + number * step


def _verdict(looks: Sequence[Look], span: float, request: LeakRequest) -> LeakVerdict:
    hits = sum(look.hit for look in looks)
    if not looks[-1].hit:
        return LeakVerdict.NONE
    if hits >= HITS_TO_CONFIRM and span >= request.confirm_after_s:
        return LeakVerdict.CONFIRMED
    return LeakVerdict.SUSPECTED


def _out_of_memory(t: Floats, y: Floats, look: Look, limit: int) -> float:
    """When the look's trend, fitted to the later half of the samples, reaches the limit; never before now.

    The trend without load, caches and steps is more accurate than a line through the samples.
    """
    later = t >= t[0] + 0.5 * (t[-1] - t[0])
    now = float(np.mean(y[later] - look.slope_bytes_per_s * (t[later] - t[-1])))
    return float(t[-1]) + max(0.0, (limit - now) / look.slope_bytes_per_s)


def _reason(verdict: LeakVerdict, looks: Sequence[Look], span: float, request: LeakRequest) -> str:
    last = looks[-1]
    if verdict is LeakVerdict.NONE:
        return last.why
    hits = sum(look.hit for look in looks)
    errors = last.slope_bytes_per_s / last.slope_error if last.slope_error > 0 else float("inf")
    found = (
        f"the floor grows by {last.slope_bytes_per_s * HOUR_S / 1e6:.3g} MB/h ({last.growth:.0%} of its level in "
        f"{span / HOUR_S:.3g} h, {min(errors, 999):.0f} standard errors) after load, caches and steps are explained, "
        f"in {hits} look{'s' if hits > 1 else ''} in a row"
    )
    if verdict is LeakVerdict.CONFIRMED:
        return found
    return f"{found}; {HITS_TO_CONFIRM} looks and {request.confirm_after_s / HOUR_S:.3g} h of data would confirm it"
