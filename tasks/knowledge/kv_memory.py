"""Memory at the same budget of keys and values, so that engines can be compared fairly. Pure.

The best batch size differs from engine to engine, and so does the requested context. Their peaks then contain
different amounts of keys and values, and cannot be compared directly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from tasks.core.records import Number

KV_TOKENS = 4096
"""Default number of tokens whose keys and values are held."""


def memory_at(peaks: Mapping[int, int], tokens: int) -> Number | None:
    """Peak memory of an engine that holds keys and values of `tokens` tokens, from measured peaks by tokens, bytes.

    A peak at exactly that budget is `measured`; otherwise it is `predicted`, on the line between the nearest
    budgets, or beyond them on the line through the two outermost. None with fewer than two budgets, or if
    peaks do not grow with the budget: such an engine allocates all its memory at the start.
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
    """The two points that define the line."""
    for left, right in pairwise(points):
        if left[0] < tokens < right[0]:
            return left, right
    return points[0], points[-1]
