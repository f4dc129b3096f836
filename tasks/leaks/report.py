"""A leak check's answer for people and records. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from tasks.core.figures import line
from tasks.core.markdown import page, section, table
from tasks.core.records import Number
from tasks.core.verdicts import LeakVerdict, StageName
from tasks.leaks.models import LeakResult, Look

HOUR_S = 3600.0
_SHOWN_LOOKS = 8


def headline(result: LeakResult) -> str:
    """How fast memory grows, and when it runs out."""
    if result.verdict is LeakVerdict.NONE:
        return result.reason
    rate = f"{result.slope_bytes_per_s * HOUR_S / 1e6:+.3g} MB/h"
    return f"{rate}, out of memory at {_when(result.oom_at_s)}" if result.oom_at_s is not None else rate


def numbers(result: LeakResult) -> Mapping[str, Number]:
    """Figures for the record."""
    found = {
        "slope": Number(value=result.slope_bytes_per_s, unit="B/s"),
        "span": Number(value=result.span_s, unit="s"),
        "samples": Number(value=result.samples, unit="1"),
    }
    if result.looks:
        found["level"] = Number(value=result.looks[-1].level_bytes, unit="B")
    if result.oom_at_s is not None:
        found["out_of_memory_at"] = Number(value=result.oom_at_s, unit="s", kind="predicted")
    return found


def markdown(result: LeakResult) -> str:
    """The artifact: the verdict, the floor as a figure, and the looks behind the verdict."""
    forecast = ""
    if result.oom_at_s is not None:
        forecast = f"Memory runs out at **{_when(result.oom_at_s)}** if nothing changes (predicted)."
    judged = [look for look in result.looks[-_SHOWN_LOOKS:] if look.structure is not None]
    start = result.looks[-1].until_s - result.span_s if result.looks else 0.0
    heads = ("data", "floor rises", "±", "growth", "explained by", "hit")
    return page(
        StageName.LEAKS,
        result.verdict,
        result.reason,
        forecast,
        _figure(result.floor),
        section("Looks", table(heads, [_row(look, start) for look in judged]) if judged else ""),
        f"{result.samples} sample{'s'[: result.samples != 1]} over {_span(result.span_s)}. {_NEXT[result.verdict]}",
    )


_NEXT = {
    LeakVerdict.NONE: "The sampler continues; the check runs every night.",
    LeakVerdict.SUSPECTED: "The sampler continues; more data will confirm this or not.",
    LeakVerdict.CONFIRMED: "What to do: restart the service before memory runs out, and find out what grows.",
}


def _row(look: Look, start: float) -> tuple[str, ...]:
    rate, error = (value * HOUR_S / 1e6 for value in (look.slope_bytes_per_s, look.slope_error))
    hit = "yes" if look.hit else f"no: {look.why}"
    return (
        _span(look.until_s - start),
        f"{rate:.3g} MB/h",
        f"{error:.2g} MB/h",
        f"{look.growth:.1%}",
        str(look.structure),
        hit,
    )


def _figure(floor: tuple[tuple[float, float], ...]) -> str:
    if not floor:
        return ""
    points = [((t - floor[0][0]) / HOUR_S, value / 1e6) for t, value in floor]
    return line("Floor of anonymous memory", "h", "MB", points)


def _span(seconds: float) -> str:
    """A span of time in a suitable unit."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * HOUR_S else f"{seconds / HOUR_S:.3g} h"


def _when(t_s: float) -> str:
    """A date for Unix time, which the sampler uses; seconds for a series with another origin."""
    if 1e9 < t_s < 4e9:
        return datetime.fromtimestamp(t_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{t_s:.0f} s"
