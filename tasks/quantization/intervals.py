"""Values with the 95 % intervals that they are judged by. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise

from tasks.core.student import two_sided_95
from tasks.quantization.models import Estimate

_MOST_SEGMENTS = 32
_LEAST_TOKENS = 16
_NORMAL_975 = 1.960


def mean_interval(values: Sequence[float]) -> Estimate:
    """The mean of one value for each token, in the text's order.

    Student's interval over the means of up to 32 consecutive segments: neighbouring tokens go wrong together, and
    rare large values are averaged before they are taken for normal. Needs two segments of 16 tokens; infinitely
    wide below.
    """
    count = min(_MOST_SEGMENTS, len(values) // _LEAST_TOKENS)
    mean = statistics.fmean(values)
    if count < 2 or not math.isfinite(mean):
        return Estimate(value=mean, low=-math.inf, high=math.inf)
    edges = [number * len(values) // count for number in range(count + 1)]
    means = [statistics.fmean(values[start:end]) for start, end in pairwise(edges)]
    half = two_sided_95(count - 1) * statistics.stdev(means) / math.sqrt(count)
    return Estimate(value=mean, low=mean - half, high=mean + half)


def transformed(estimate: Estimate, by: Callable[[float], float]) -> Estimate:
    """The same estimate on another scale; `by` ascends."""
    return Estimate(value=by(estimate.value), low=by(estimate.low), high=by(estimate.high))


def share_lost(ours: Sequence[bool], theirs: Sequence[bool]) -> Estimate:
    """The share of right answers lost, paired by task item, relative to how many they had right.

    Wald's interval for the difference of paired proportions with half an answer added to each of the four cases
    (Agresti and Min, 2005): if both answer alike throughout, it still tells how little so few answers say.
    """
    count = len(ours)
    had = sum(theirs)
    lost = sum(their and not our for our, their in zip(ours, theirs, strict=True))
    won = sum(our and not their for our, their in zip(ours, theirs, strict=True))
    middle = (lost - won) / (count + 2)
    variance = (lost + won + 1 - (lost - won) ** 2 / (count + 2)) / (count + 2) ** 2
    half = _NORMAL_975 * math.sqrt(variance)
    return Estimate(
        value=(lost - won) / had, low=(middle - half) * count / had, high=(middle + half) * count / had
    )
