"""Figures for artifacts, as SVG inside an image link: GitHub and both of Prefect's interfaces show those. Pure.

Mermaid would be shorter, but Prefect's default interface shows its source. The panel is dark, like code blocks in
both interfaces, so a figure is readable on a light and on a dark page.
"""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from html import escape

_WIDTH = 560
_ROW = 26
_LEFT = 120
_RIGHT = 110
_PLOT_HEIGHT = 160
_SCATTER_HEIGHT = 260
_DOTS = (5.0, 15.0)
"""Radius of the smallest and of the largest dot."""
_PANEL, _TEXT, _FAINT, _BAR, _MARKED = "#1d1e24", "#d7dae0", "#5b606b", "#4c6fbf", "#2ea44f"


class Standing(StrEnum):
    """The outcome of a candidate, which its dot shows."""

    CHOSEN = "chosen"
    FRONT = "on the front"
    BEATEN = "beaten"
    REJECTED = "rejected"


_GREY = "#7d828d"
_COLOURS = {
    Standing.CHOSEN: (_MARKED, _MARKED),
    Standing.FRONT: (_BAR, "#8fa8dd"),
    Standing.BEATEN: (_BAR, _BAR),
    Standing.REJECTED: (_FAINT, _GREY),
}
"""Fill and edge of a dot."""


@dataclass(frozen=True)
class Dot:
    """One candidate with two figures, the second with its interval, and a size that its area shows."""

    label: str
    x: float
    y: float
    low: float
    high: float
    size: float
    standing: Standing


def bars(title: str, unit: str, rows: Sequence[tuple[str, float]], *, marked: str | None = None) -> str:
    """A horizontal bar for each (label, value); the `marked` label's bar is highlighted."""
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


@dataclass(frozen=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def hits(self, other: _Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def scatter(
    title: str, x_unit: str, y_unit: str, dots: Sequence[Dot], *, floor: float, size_note: str = ""
) -> str:
    """Dots over both axes, with a line at `floor`; each dot shows its outcome.

    The y axis ends just below the floor: dots further down are drawn at its end, with their value.
    """
    left, top, right = 64.0, 60.0, _WIDTH - 24.0
    bottom = top + _SCATTER_HEIGHT
    most = max([dot.high for dot in dots] + [floor])
    least = max(min([dot.low for dot in dots] + [floor]), floor - max(most - floor, 1e-9) / 2)
    room = (most - least) * 0.08 or 1.0
    least, most = least - room, most + room
    x_low, x_high = min(dot.x for dot in dots), max(dot.x for dot in dots)
    x_room = (x_high - x_low) * 0.1 or x_high * 0.1 or 1.0
    x_low, x_high = x_low - x_room, x_high + x_room

    def place(dot: Dot) -> tuple[float, float]:
        return left + (dot.x - x_low) / (x_high - x_low) * (right - left), level(dot.y)

    def level(y: float) -> float:
        return bottom - (max(least, min(most, y)) - least) / (most - least) * _SCATTER_HEIGHT

    parts = [
        _text(16, 24, title),
        f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="{_FAINT}"/>',
        f'<path d="M{left} {level(floor):.1f}H{right}" stroke="{_FAINT}" stroke-dasharray="4 4"/>',
        _text(left - 8, level(floor) + 4, _number(floor), anchor="end"),
        _text(16, 46, y_unit),
        _text(left - 8, bottom, _number(least), anchor="end"),
        _text(left, bottom + 20, _number(x_low)),
        _text(right, bottom + 20, f"{_number(x_high)} {x_unit}", anchor="end"),
    ]
    if level(floor) - level(most - room) > 16:
        parts.append(_text(left - 8, level(most - room) + 4, _number(most - room), anchor="end"))
    circles = [(*place(dot), _radius(dot, dots)) for dot in dots]
    taken = [_Box(x - r, y - r, x + r, y + r) for x, y, r in circles]
    ordered = sorted(zip(dots, circles, strict=True), key=lambda pair: list(Standing).index(pair[0].standing))
    drawn, labels = [], []
    for dot, (x, y, radius) in ordered:
        ends = f"M{x:.1f} {level(dot.low):.1f}V{level(dot.high):.1f}"
        whisker = f'<path d="{ends}" stroke="{_COLOURS[dot.standing][1]}"/>'
        drawn.append(whisker + _circle(x, y, radius, dot.standing))
        labels.append(_label(dot, x, y, radius, taken, below=dot.y < least))
    parts += [*reversed(drawn), *labels]
    return _image(title, bottom + 58, [*parts, *_legend(left, bottom + 44, size_note)])


def _radius(dot: Dot, dots: Sequence[Dot]) -> float:
    return max(_DOTS[0], _DOTS[1] * math.sqrt(dot.size / (max(other.size for other in dots) or 1.0)))


def _circle(x: float, y: float, radius: float, standing: Standing) -> str:
    fill, stroke = _COLOURS[standing]
    solid = ' fill-opacity="0.35"' if standing is Standing.BEATEN else ""
    halo = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius + 4:.1f}" fill="none" stroke="{stroke}" stroke-width="2"/>'
    dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{fill}" stroke="{stroke}"{solid}/>'
    return dot + (halo if standing is Standing.CHOSEN else "")


def _label(dot: Dot, x: float, y: float, radius: float, taken: list[_Box], *, below: bool) -> str:
    """The dot's label next to it, if it would not cover another dot or label."""
    text = f"{dot.label} ↓ {dot.y:.3g}" if below else dot.label
    width, gap = 7.2 * len(text), radius + 6
    spots = [
        (x + gap, y + 4),
        (x - gap - width, y + 4),
        (x - width / 2, y - gap - 2),
        (x - width / 2, y + gap + 10),
    ]
    spots += [(x + gap, y + 4 + step * side) for step in (12, 24, 36) for side in (-1, 1)]
    boxes = [_Box(at, down - 10, at + width, down + 3) for at, down in spots]
    inside = [box for box in boxes if box.left > 60 and box.right < _WIDTH - 4 and box.top > 50]
    best = next((box for box in inside if not any(box.hits(other) for other in taken)), boxes[0])
    taken.append(best)
    faint = dot.standing is Standing.REJECTED
    return _text(best.left, best.bottom - 3, text, colour=_GREY if faint else _TEXT, over=True)


def _legend(x: float, y: float, note: str) -> Iterator[str]:
    for standing in Standing:
        yield _circle(x, y - 4, 5, standing) + _text(x + 13, y, standing.value)
        x += 42 + 7 * len(standing.value)
    yield _text(x, y, note)


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", colour: str | None = None, over: bool = False
) -> str:
    """`over`: readable on top of lines."""
    fill = f' fill="{colour}"' if colour else ""
    if over:
        fill += f' stroke="{_PANEL}" stroke-width="4" paint-order="stroke"'
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{fill}>{escape(text)}</text>'


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
