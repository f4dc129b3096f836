"""A leak check's answer for people and records. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from tasks.core.records import Number
from tasks.core.verdicts import LeakVerdict
from tasks.leaks.models import LeakResult, Look

HOUR_S = 3600.0
_SHOWN_LOOKS = 8


def headline(result: LeakResult) -> str:
    """How much, and until when."""
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
    """The artifact: the verdict, the floor as a figure, and the looks it rests on."""
    lines = [f"# Leak: {result.verdict}", "", f"{_escape(result.reason)}.", ""]
    if result.oom_at_s is not None:
        lines += [f"Memory runs out at **{_when(result.oom_at_s)}** if nothing changes (predicted).", ""]
    if result.floor:
        lines += [*_figure(result.floor), ""]
    if result.looks:
        lines += ["| data | floor rises | ± | growth | explained by | hit |", "|---|---|---|---|---|---|"]
        start = result.looks[-1].until_s - result.span_s
        lines += [_row(look, start) for look in result.looks[-_SHOWN_LOOKS:]]
    return "\n".join(lines)


def _row(look: Look, start: float) -> str:
    hours = (look.until_s - start) / HOUR_S
    if look.structure is None:
        return f"| {hours:.3g} h | | | | | {_escape(look.why)} |"
    rate, error = (value * HOUR_S / 1e6 for value in (look.slope_bytes_per_s, look.slope_error))
    hit = "yes" if look.hit else f"no: {_escape(look.why)}"
    return f"| {hours:.3g} h | {rate:.3g} MB/h | {error:.2g} | {look.growth:.1%} | {look.structure} | {hit} |"


def _figure(floor: tuple[tuple[float, float], ...]) -> list[str]:
    """A mermaid chart of the floor; Prefect's interface and GitHub draw it."""
    hours = (floor[-1][0] - floor[0][0]) / HOUR_S
    values = [value / 1e6 for _, value in floor]
    room = max(0.05 * (max(values) - min(values)), 0.01 * max(values), 1e-6)
    return [
        "```mermaid",
        "xychart-beta",
        '    title "Floor of anonymous memory"',
        f'    x-axis "hours" 0 --> {hours:.4g}',
        f'    y-axis "MB" {max(0.0, min(values) - room):.6g} --> {max(values) + room:.6g}',
        f"    line [{', '.join(f'{value:.6g}' for value in values)}]",
        "```",
    ]


def _when(t_s: float) -> str:
    """The sampler's clock is Unix time; a series of another origin gets its seconds."""
    if 1e9 < t_s < 4e9:
        return datetime.fromtimestamp(t_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{t_s:.0f} s"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
