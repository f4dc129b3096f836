"""Figures for artifacts, as SVG inside an image link: GitHub and both of Prefect's interfaces show those. Pure.

Mermaid would be shorter, but Prefect's default interface shows its source. The panel is dark, as code blocks are
in both interfaces, so that a figure is readable on a light and on a dark page.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape

_WIDTH = 560
_ROW = 26
_LEFT = 120
_RIGHT = 110
_PLOT_HEIGHT = 160
_PANEL, _TEXT, _FAINT, _BAR, _MARKED = "#1d1e24", "#d7dae0", "#5b606b", "#4c6fbf", "#2ea44f"


def bars(title: str, unit: str, rows: Sequence[tuple[str, float]], *, marked: str | None = None) -> str:
    """A horizontal bar for each (label, value); the `marked` label's bar stands out."""
    most = max((value for _, value in rows), default=0.0) or 1.0
    room = _WIDTH - _LEFT - _RIGHT
    parts = [_text(16, 24, title)]
    for number, (label, value) in enumerate(rows):
        y = 40 + number * _ROW
        colour = _MARKED if label == marked else _BAR
        length = max(2.0, room * value / most)
        parts.append(_text(_LEFT - 8, y + 14, label, anchor="end"))
        parts.append(
            f'<rect x="{_LEFT}" y="{y}" width="{length:.1f}" height="{_ROW - 8}" rx="3" fill="{colour}"/>'
        )
        parts.append(_text(_LEFT + length + 8, y + 14, f"{_number(value)} {unit}"))
    return _image(title, 52 + len(rows) * _ROW, parts)


def line(title: str, x_unit: str, y_unit: str, points: Sequence[tuple[float, float]]) -> str:
    """A line through at least one (x, y), the x ascending, with both axes labelled at their ends."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    left, top, right, bottom = 70, 40, _WIDTH - 24, 40 + _PLOT_HEIGHT
    x_span = (xs[-1] - xs[0]) or 1.0
    low, high = min(ys), max(ys)
    room = max((high - low) * 0.1, abs(high) * 0.01, 1e-9)
    low, high = low - room, high + room
    path = " ".join(
        f"{left + (x - xs[0]) / x_span * (right - left):.1f},{bottom - (y - low) / (high - low) * _PLOT_HEIGHT:.1f}"
        for x, y in points
    )
    parts = [
        _text(16, 24, title),
        f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="{_FAINT}"/>',
        f'<polyline points="{path}" fill="none" stroke="{_BAR}" stroke-width="2"/>',
        _text(left - 8, top + 10, _number(max(ys)), anchor="end"),
        _text(left - 8, bottom - 4, _number(min(ys)), anchor="end"),
        _text(left - 8, (top + bottom) / 2, y_unit, anchor="end"),
        _text(left, bottom + 20, _number(xs[0])),
        _text(right, bottom + 20, f"{_number(xs[-1])} {x_unit}", anchor="end"),
    ]
    return _image(title, bottom + 36, parts)


def _text(x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"


def _image(title: str, height: float, parts: Sequence[str]) -> str:
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height:.0f}" '
        f'font-family="sans-serif" font-size="13" fill="{_TEXT}">'
        f'<rect width="100%" height="100%" rx="6" fill="{_PANEL}"/>{"".join(parts)}</svg>'
    )
    alt = title.replace("[", "(").replace("]", ")")
    return f"![{alt}](data:image/svg+xml;base64,{b64encode(svg.encode()).decode()})"
