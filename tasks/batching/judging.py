"""What the runs of a size say together, and whether that keeps the bounds. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from tasks.batching.models import Fit, Limits, Run, SizeFigures
from tasks.batching.saturation import Saturation
from tasks.core.student import one_sided_95
from tasks.engines.failures import Failure, FailureKind

FAILURES = 2
"""Runs of a size that go wrong before it counts as failing: one may have been a mishap."""

_ROUNDING = 1e-9

MEMORY = (Fit.OUT_OF_MEMORY, Fit.MEMORY)
"""The failure of a size that runs out of memory."""

Sizes = Mapping[int, SizeFigures]


def summarise(history: Sequence[Run], limits: Limits) -> dict[int, SizeFigures]:
    """The runs by size, judged. How much latencies scatter is learnt from all sizes together."""
    batches = sorted({run.batch for run in history})
    by_size = {batch: [run for run in history if run.batch == batch] for batch in batches}
    scatter = _scatter(list(by_size.values()))
    return {batch: _judge(batch, runs, limits, scatter) for batch, runs in by_size.items()}


def _judge(
    batch: int, runs: Sequence[Run], limits: Limits, scatter: Mapping[str, tuple[float, int]]
) -> SizeFigures:
    good = [run for run in runs if run.answered]
    failures = tuple(fault for run in runs if (fault := run.fault) is not None)
    if any(run.oom for run in runs):
        return SizeFigures(
            batch=batch, runs=len(runs), fit=Fit.OUT_OF_MEMORY, why="out of memory", failures=failures
        )
    if len(failures) >= FAILURES or not good:
        return SizeFigures(
            batch=batch, runs=len(runs), fit=Fit.FAILED, why=failures[-1].line, failures=failures
        )
    peak = max(run.peak_bytes or 0 for run in good)
    put_off = [run.preemptions for run in good if run.preemptions is not None]
    preemptions = statistics.median(put_off) if put_off else None
    busy = [run.sm_activity for run in good if run.sm_activity is not None]
    seen = _latencies(good)
    latency = {name: statistics.median(values) for name, values in seen.items()}
    fit, why = _check_bounds(peak, latency, limits)
    if fit is Fit.FITS and preemptions:
        # Engines that take all memory beforehand: their peak does not show how many sequences fit.
        fit, why = Fit.MEMORY, f"has no room for all its keys and values: {preemptions:g} preemptions a run"
    if fit in (Fit.FITS, Fit.LATENCY) and (behind := _falls_behind(good)) is not None:
        fit, why = Fit.SATURATED, f"does not keep up with {limits.rate_per_s:g} requests/s: {behind.why}"
    if fit is Fit.LATENCY:
        failures = (*failures, Failure(kind=FailureKind.SLOW, what=why))
    return SizeFigures(
        batch=batch,
        runs=len(good),
        fit=fit,
        peak_bytes=peak,
        latency_ms=latency,
        latency_high_ms={name: _upper(values, scatter.get(name)) for name, values in seen.items()},
        throughput=statistics.median(run.throughput or 0.0 for run in good),
        sm_activity=statistics.median(busy) if busy else None,
        preemptions=preemptions,
        gpu_layers=next((run.gpu_layers for run in good if run.gpu_layers is not None), None),
        kv_tokens=next((run.kv_tokens for run in good if run.kv_tokens is not None), None),
        why=why,
        failures=failures,
    )


def _falls_behind(runs: Sequence[Run]) -> Saturation | None:
    """The clearest of the runs that did not keep up, if they are half of all or more."""
    behind = [run.saturation for run in runs if run.saturation is not None and run.saturation.saturated]
    return max(behind, key=lambda one: one.growth) if 2 * len(behind) >= len(runs) and behind else None


def _latencies(runs: Sequence[Run]) -> dict[str, list[float]]:
    """The measured latencies by name. Nothing takes no time, so a latency of 0 was not measured."""
    names = sorted({name for run in runs for name, value in run.latency_ms.items() if value > 0})
    return {name: [run.latency_ms[name] for run in runs if run.latency_ms.get(name, 0) > 0] for name in names}


def _scatter(groups: Sequence[Sequence[Run]]) -> dict[str, tuple[float, int]]:
    """For each latency, the standard deviation of its logarithm within a size, and the degrees of freedom."""
    squares: dict[str, tuple[float, int]] = {}
    for runs in groups:
        for name, values in _latencies([run for run in runs if run.answered]).items():
            logs = [math.log(value) for value in values if value > 0]
            if len(logs) > 1:
                total, freedom = squares.get(name, (0.0, 0))
                mean = statistics.fmean(logs)
                squares[name] = (total + sum((log - mean) ** 2 for log in logs), freedom + len(logs) - 1)
    return {name: (math.sqrt(total / freedom), freedom) for name, (total, freedom) in squares.items()}


def _upper(values: Sequence[float], scatter: tuple[float, int] | None) -> float:
    """What the latency is at most, at 95 %; of a scatter that is not known nothing is added."""
    middle = max(statistics.median(values), statistics.geometric_mean(values) if min(values) > 0 else 0.0)
    if scatter is None:
        return middle
    deviation, freedom = scatter
    return middle * math.exp(one_sided_95(freedom) * deviation / math.sqrt(len(values)))


def _check_bounds(peak: int, latency: Mapping[str, float], limits: Limits) -> tuple[Fit, str]:
    if peak > limits.memory_bytes:
        return Fit.MEMORY, f"needs {_size(peak)} of memory, {_size(limits.memory_bytes)} may be used"
    missed = [
        f"{name} {_unmeasured(name) if (found := latency.get(name)) is None else f'is {found:.4g} ms'}, "
        f"the limit is {bound:.4g} ms"
        for name, bound in limits.latency_ms.items()
        if latency.get(name, math.inf) > bound
    ]
    return (Fit.LATENCY, "; ".join(missed)) if missed else (Fit.FITS, "")


def _unmeasured(name: str) -> str:
    why = ": each answer came in one piece" if name.startswith("tpot") else ""
    return f"was not measured{why}"


def unmeasured(size: SizeFigures, limits: Limits) -> bool:
    """Whether a latency that is to be kept was not measured, at a size that was loaded."""
    return size.fit is Fit.LATENCY and not limits.latency_ms.keys() <= size.latency_ms.keys()


def _size(value: int) -> str:
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.4g} MB"


def doubt(size: SizeFigures, limits: Limits) -> str:
    """The latency that may well miss its bound, though it kept it; empty if none may."""
    for name, bound in limits.latency_ms.items():
        if size.latency_high_ms.get(name, math.inf) > bound * (1 + _ROUNDING):
            high = size.latency_high_ms[name]
            return f"{name} may be {high:.4g} ms, the limit is {bound:.4g} ms"
    return ""
