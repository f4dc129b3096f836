"""Memory at one and the same budget of keys and values, so that engines compare fairly. Pure.

The best batch size differs from engine to engine, and so does the context that was asked for: their peaks then hold
different amounts of keys and values, and say little beside each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from tasks.core.records import Number

KV_TOKENS = 4096
"""Tokens whose keys and values are held, where nobody says otherwise."""


def memory_at(peaks: Mapping[int, int], tokens: int) -> Number | None:
    """Peak memory of an engine that holds keys and values of `tokens` tokens, from measured peaks by tokens, bytes.

    What was measured at that budget is `measured`; else it is `predicted`: on the line between the nearest budgets,
    or beyond them on the line through the two outermost. None where fewer than two budgets tell a line, and where
    peaks do not grow with the budget: such an engine takes its memory beforehand, whatever it is asked to hold.
    """
    points = sorted(peaks.items())
    if len(points) < 2 or points[-1][1] <= points[0][1]:
        return None
    if tokens in peaks:
        return Number(value=peaks[tokens], unit="byte")
    (left, low), (right, high) = _around(points, tokens)
    value = low + (high - low) * (tokens - left) / (right - left)
    return Number(value=value, unit="byte", kind="predicted") if value > 0 else None


def _around(points: Sequence[tuple[int, int]], tokens: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The two points that a line is drawn through."""
    for left, right in pairwise(points):
        if left[0] < tokens < right[0]:
            return left, right
    return points[0], points[-1]
