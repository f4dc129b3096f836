"""The search for a batch size. Pure: looks at what was measured and says what to measure next, or decides.

Whatever it answers keeps this: the size was measured, `REPEATS` times; its peak memory and the upper confidence
limits of its latencies keep their bounds; its throughput is within the tolerance of the best measured size that
keeps them; no smaller measured size does as well.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from tasks.batching.judging import FAILURES, MEMORY, Sizes, doubt, summarise, unmeasured
from tasks.batching.models import Ask, Decision, Fit, Limits, Run, SizeFigures

REPEATS = 5
"""Runs of the size that is answered, and of the best that it is compared with."""

MORE_REPEATS = (REPEATS, 15, 25)
"""Runs of a size that leaves a doubt, if no other size is good enough: so many, and more as long as it remains."""

BOUNDARY_REPEATS = 3
BOUNDARY = 1.1
"""A size that misses a bound by less than a tenth is measured again before it counts as missing it."""

FLAT = 0.02
"""Throughput that rises by less has stopped rising."""

_WAITING = ("ttft", "latency")
"""Latencies whose names begin so grow if slots are too few; others grow with the slots."""

_FLAT_STEPS = 2
_MOST_CLIFFS = 2
_FINE = 0.1
"""Sizes are not told apart more finely than this."""


def next_step(
    history: Sequence[Run], limits: Limits, prior: int | None = None, each_bytes: float | None = None
) -> Ask | Decision:
    """What to measure next, or the decision.

    `prior` is a size to start from, `each_bytes` what a sequence adds to memory; both if they are known.
    """
    sizes = summarise(history, limits)
    if (batch := _failed_once(history)) is not None:
        return Ask(batch=batch)
    if (size := next((one for one in sizes.values() if _measure_again(one, limits)), None)) is not None:
        return Ask(batch=size.batch, runs=REPEATS - size.runs)
    if (batch := _explore(sizes, limits, prior, each_bytes)) is not None:
        return Ask(batch=batch)
    return _recheck(sizes, limits) or _settle(sizes, limits)


def _failed_once(history: Sequence[Run]) -> int | None:
    """The size whose only failure, so far, was the last run: it may have been a mishap."""
    if not history or history[-1].answered or history[-1].oom:
        return None
    batch = history[-1].batch
    failures = sum(not run.answered for run in history if run.batch == batch)
    return batch if failures < FAILURES else None


def _measure_again(size: SizeFigures, limits: Limits) -> bool:
    """A busy host may keep the clients from seeing tokens come one by one, once: a size is not refused for that."""
    return size.runs < REPEATS and unmeasured(size, limits)


def _explore(sizes: Sizes, limits: Limits, prior: int | None, each_bytes: float | None) -> int | None:
    """The next size that was never measured; None when there is nothing left to learn."""
    if not sizes:
        return max(1, min(prior or 1, limits.max_batch))
    if limits.rate_per_s is not None:
        return _explore_at_rate(sizes, limits, each_bytes)
    fitting = [size.batch for size in sizes.values() if size.fits]
    if not fitting:
        return None if 1 in sizes else 1  # a bad prior: start over from 1
    if (batch := _room_in_cache(sizes, limits)) is not None:
        return batch
    return _upward(sizes, limits, max(fitting), each_bytes) or _downward(sizes, limits)


def _room_in_cache(sizes: Sizes, limits: Limits) -> int | None:
    """After a single sequence: as many of the load's longest requests as the engine says fit into its cache."""
    if list(sizes) != [1] or sizes[1].kv_tokens is None or limits.request_tokens is None:
        return None
    batch = min(sizes[1].kv_tokens // limits.request_tokens, limits.max_batch)
    return batch if batch > 2 else None


def _explore_at_rate(sizes: Sizes, limits: Limits, each_bytes: float | None) -> int | None:
    """In an open loop throughput is the rate, so the smallest size that keeps up is wanted: it lies above those that
    let requests wait and below those that keep up, or that break another bound."""
    small = max((size.batch for size in sizes.values() if _lets_wait(size, limits)), default=0)
    high = min((batch for batch in sizes if batch > small), default=None)
    finest = max(1, int(small * _FINE))
    if high is None:
        target = _room(sizes, limits, small, min(2 * small, limits.max_batch), each_bytes)
        return target if target >= small + finest else None
    if high <= 2 * small + 1:
        target = (small + high) // 2
    elif sizes[high].fits:
        target = max(high // 2, small + 1)
    else:
        target = max(2 * small, 1)
    return target if small + finest <= target < high else None


def _lets_wait(size: SizeFigures, limits: Limits) -> bool:
    """Whether requests wait too long at this size because there are too few slots: it is saturated, or nearly so."""
    if size.fit is Fit.SATURATED:
        return True
    missed = [name for name, bound in limits.latency_ms.items() if size.latency_ms.get(name, 0.0) > bound]
    return size.fit is Fit.LATENCY and bool(missed) and all(name.startswith(_WAITING) for name in missed)


def _upward(sizes: Sizes, limits: Limits, low: int, each_bytes: float | None) -> int | None:
    """Doubling, then halving the gap to the smallest size that does not fit, while throughput still rises."""
    if not _rising(sizes):
        return None
    broken = min((batch for batch in sizes if batch > low), default=math.inf)
    if broken > 2 * low:
        target = min(2 * low, limits.max_batch)
    elif _last_gain(sizes) <= limits.tolerance / 2 or _cliffs(sizes) >= _MOST_CLIFFS:
        # What lies between adds less than the step before, or costs more crashes than it is worth.
        return None
    else:
        target = (low + int(broken)) // 2
    room = _room(sizes, limits, low, target, each_bytes)
    alone = len(_peaks(sizes)) == 1 and low > 1 and low // 2 not in sizes
    if room < target and alone and each_bytes is None:
        return low // 2  # one point gives no slope: a second one tells how far memory reaches
    target = min(target, room)
    finest = min(low + max(1, int(low * _FINE)), limits.max_batch)
    return target if target > low and target >= finest else None


def _rising(sizes: Sizes) -> bool:
    """Whether throughput may still grow: at most one measured size lies beyond where it became flat."""
    fitting = [size for size in sizes.values() if size.fits]
    best = max(size.throughput for size in fitting)
    flat_from = min(size.batch for size in fitting if size.throughput >= best * (1 - FLAT))
    return sum(size.batch > flat_from for size in fitting) < _FLAT_STEPS


def _last_gain(sizes: Sizes) -> float:
    """Relative gain of throughput between the two largest sizes that fit."""
    fitting = [size.throughput for _, size in sorted(sizes.items()) if size.fits]
    if len(fitting) < 2 or fitting[-2] <= 0:
        return math.inf
    return fitting[-1] / fitting[-2] - 1


def _cliffs(sizes: Sizes) -> int:
    return sum(size.fit == Fit.OUT_OF_MEMORY for size in sizes.values())


def _peaks(sizes: Sizes) -> list[tuple[int, int]]:
    return [(size.batch, size.peak_bytes) for _, size in sorted(sizes.items()) if size.peak_bytes]


def _room(sizes: Sizes, limits: Limits, low: int, target: int, each_bytes: float | None) -> int:
    """The largest size up to `target` whose memory, extrapolated from what was measured, keeps the bound.

    Memory is taken to grow by the steepest slope that the measured sizes show; from one size alone by `each_bytes`
    a sequence, or if that is not known, in proportion, which is never too little.
    """
    peaks = _peaks(sizes)
    if limits.taken_at_start:
        return target
    if len(peaks) == 1 and each_bytes is not None:
        batch, peak = peaks[0]
        return min(target, batch + math.floor((limits.memory_bytes - peak) / each_bytes))
    if len(peaks) < 2:
        if not peaks or low == 1:
            return target
        return min(target, limits.memory_bytes * peaks[0][0] // peaks[0][1])
    base = next((y for x, y in peaks if x == low), None)
    slope = _steepest(peaks)
    if base is None or slope <= 0:
        return target
    return min(target, low + math.floor((limits.memory_bytes - base) / slope))


def _steepest(peaks: Sequence[tuple[int, int]]) -> float:
    pairs = [*itertools.pairwise(peaks), (peaks[0], peaks[-1])]
    return max((y1 - y0) / (x1 - x0) for (x0, y0), (x1, y1) in pairs)


def measured_each_bytes(sizes: Sizes) -> float | None:
    """What a sequence adds to memory, from the measured sizes; None if they do not show it."""
    peaks = _peaks(sizes)
    slope = _steepest(peaks) if len(peaks) > 1 else 0.0
    return slope if slope > 0 else None


def ended_by_memory(sizes: Sizes, limits: Limits, each_bytes: float | None) -> bool:
    """Whether larger sizes ran out of memory, or are not tried because they would."""
    if any(size.fit in MEMORY for size in sizes.values()):
        return True
    low = max((size.batch for size in sizes.values() if size.fits), default=0)
    finest = low + max(1, int(low * _FINE))
    return low > 0 and finest <= limits.max_batch and _room(sizes, limits, low, finest, each_bytes) < finest


def _downward(sizes: Sizes, limits: Limits) -> int | None:
    """After a start above 1: half the smallest size that is good enough, if nothing between fits."""
    fitting = [size for _, size in sorted(sizes.items()) if size.fits]
    best = max(size.throughput for size in fitting)
    smallest = next(size.batch for size in fitting if size.throughput >= best * (1 - limits.tolerance))
    below = max((size.batch for size in fitting if size.batch < smallest), default=0)
    half = smallest // 2
    return half if half > below and half not in sizes else None


def _recheck(sizes: Sizes, limits: Limits) -> Ask | None:
    """The smallest size that just misses a bound, if a single run says so."""
    for batch, size in sorted(sizes.items()):
        if size.fit == Fit.LATENCY and size.runs < BOUNDARY_REPEATS and _narrowly(size, limits):
            return Ask(batch=batch, runs=BOUNDARY_REPEATS - size.runs)
    return None


def _narrowly(size: SizeFigures, limits: Limits) -> bool:
    return all(
        size.latency_ms.get(name, math.inf) <= bound * BOUNDARY for name, bound in limits.latency_ms.items()
    )


def _settle(sizes: Sizes, limits: Limits) -> Ask | Decision:
    """The smallest size that is good enough, once it and the best have been measured often and leave no doubt."""
    fitting = [size for _, size in sorted(sizes.items()) if size.fits]
    if not fitting:
        return _may_keep(sizes, limits) or Decision(batch=None, reason=_why_none(sizes, limits))
    doubtful = [size for size in fitting if size.runs >= REPEATS and doubt(size, limits)]
    sure = [size for size in fitting if size not in doubtful]
    if not sure:
        return _give_up(doubtful, sizes, limits)
    best = sure[0] if limits.rate_per_s else max(sure, key=lambda size: size.throughput)
    chosen = next(size for size in sure if size.throughput >= best.throughput * (1 - limits.tolerance))
    for size in (chosen, best):
        if size.runs < REPEATS:
            return Ask(batch=size.batch, runs=REPEATS - size.runs)
    if chosen is best and (between := _nearest_sure(chosen, doubtful, sizes, limits)) is not None:
        return Ask(batch=between, runs=REPEATS)
    return Decision(batch=chosen.batch, reason=_reason(chosen, best, sizes, limits))


def _may_keep(sizes: Sizes, limits: Limits) -> Ask | None:
    """The smallest size, measured often, if it misses a latency by less than its runs scatter: none should be as
    sure an answer as a size. In an open loop runs are too long for it."""
    size = sizes[min(sizes)]
    if size.fit is not Fit.LATENCY or limits.rate_per_s is not None:
        return None
    for name, bound in limits.latency_ms.items():
        found, high = size.latency_ms.get(name), size.latency_high_ms.get(name)
        # As far below the measured one as the upper limit lies above it.
        if found is None or high is None or found**2 / high > bound:
            return None
    return _ask_more(size)


def _ask_more(size: SizeFigures) -> Ask | None:
    """More runs of a size that leaves a doubt; None after the most."""
    runs = next((runs for runs in MORE_REPEATS if runs > size.runs), None)
    return Ask(batch=size.batch, runs=runs - size.runs) if runs else None


def _why_none(sizes: Sizes, limits: Limits) -> str:
    waiting = [size for size in sizes.values() if _lets_wait(size, limits)] if limits.rate_per_s else []
    if waiting:
        most = max(waiting, key=lambda size: size.batch)
        beyond = next((size for batch, size in sorted(sizes.items()) if batch > most.batch), None)
        more = f"; batch {beyond.batch} {beyond.why}" if beyond else ""
        return f"batch {most.batch} {most.why}{more}"
    smallest = sizes[min(sizes)]
    return f"not even batch {smallest.batch} works: {smallest.why}"


def _nearest_sure(
    chosen: SizeFigures, doubtful: Sequence[SizeFigures], sizes: Sizes, limits: Limits
) -> int | None:
    """A size between the best sure one and a doubtful one above it, at which latency should leave no doubt."""
    above = min(
        (size for size in doubtful if size.batch > chosen.batch), key=lambda size: size.batch, default=None
    )
    if above is None or above.throughput <= chosen.throughput * (1 + limits.tolerance):
        return None
    shares = []
    for name, bound in limits.latency_ms.items():
        low, high = chosen.latency_high_ms[name], above.latency_high_ms[name]
        shares.append((bound - low) / (high - low) if high > bound else 1.0)
    found = chosen.batch + math.floor((above.batch - chosen.batch) * min(shares))
    finest = chosen.batch + max(1, int(chosen.batch * _FINE))
    return found if finest <= found < above.batch and found not in sizes else None


def _give_up(doubtful: Sequence[SizeFigures], sizes: Sizes, limits: Limits) -> Ask | Decision:
    """No size is sure: a smaller one, more runs of the smallest, or none."""
    smallest = doubtful[0]
    half = smallest.batch // 2
    if limits.rate_per_s is not None:
        twice = 2 * doubtful[-1].batch
        waits = doubt(doubtful[-1], limits).startswith(_WAITING)
        if waits and twice <= limits.max_batch and twice not in sizes:
            return Ask(batch=twice)
    elif half >= 1 and half not in sizes:
        return Ask(batch=half, runs=REPEATS)
    reason = f"not even batch {smallest.batch} is sure to work: {doubt(smallest, limits)}"
    return _ask_more(smallest) or Decision(batch=None, reason=reason)


def _reason(chosen: SizeFigures, best: SizeFigures, sizes: Sizes, limits: Limits) -> str:
    above = next(
        (size for batch, size in sorted(sizes.items()) if batch > chosen.batch and not size.fits), None
    )
    if limits.rate_per_s is not None:
        return _reason_at_rate(chosen, sizes, limits)
    if chosen.batch == best.batch:
        text = f"the most throughput of {len(sizes)} sizes"
    else:
        share = chosen.throughput / best.throughput
        text = (
            f"the smallest of {len(sizes)} sizes with {share:.0%} of the most throughput (batch {best.batch})"
        )
    if above is not None:
        text += f"; batch {above.batch} {above.why}"
    elif max(sizes) == limits.max_batch == chosen.batch:
        text += "; nothing larger may be tried"
    return text


def _reason_at_rate(chosen: SizeFigures, sizes: Sizes, limits: Limits) -> str:
    text = f"the smallest of {len(sizes)} sizes that keeps up with {limits.rate_per_s:g} requests/s"
    below = [size for batch, size in sorted(sizes.items()) if batch < chosen.batch and not size.fits]
    return f"{text}; batch {below[-1].batch} {below[-1].why}" if below else text
