"""Score the batch search on generated rigs, beside what one would do otherwise. Writes JSON.

Every method sees the same rigs (`rigs.py`) with the same noise. Counted are the sizes that it probed, how often it
ran out of memory, how often the size that it answered truly keeps every bound, and its true throughput against the
best size that keeps them. No answer keeps every bound, and has no throughput: how often there was an answer that
keeps them, of the rigs on which one could be given, stands beside it. So does how often there was, of those on
which it can be shown that a size keeps them: where what is true comes nearer to a bound than fifteen runs can tell,
only luck would answer.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.optuna import with_optuna
from benchmarks.rigs import LATENCY, TOLERANCE, Rig, make_rig
from tasks.batching.models import Decision, Run
from tasks.batching.plan import next_step

RESULTS = Path(__file__).parent / "results" / "tuning.json"
_TRIALS = 20
_ARTICLE_START = 32
_RUNS = 15
_STUDENT_95 = 1.761
"""One-sided 95 % point of Student's t with `_RUNS - 1` degrees of freedom."""
_LARGEST_95 = 2.57
"""What the largest of five half-normal deviations is below, at 95 %."""

Measure = Callable[[int], Run]
Method = Callable[[Rig, Measure], int | None]


def slipway(rig: Rig, measure: Measure, prior: int | None = None) -> int | None:
    """The search of the batching stage."""
    history: list[Run] = []
    while True:
        step = next_step(history, rig.limits, prior)
        if isinstance(step, Decision):
            return step.batch
        for _ in range(step.runs):
            history.append(measure(step.batch))
            if history[-1].oom:
                break


def with_good_prior(rig: Rig, measure: Measure) -> int | None:
    """The same from the size that is truly right."""
    return slipway(rig, measure, right_size(rig))


def with_big_prior(rig: Rig, measure: Measure) -> int | None:
    """The same from a size that is four times too big."""
    return slipway(rig, measure, 4 * right_size(rig))


def exhaustive(rig: Rig, measure: Measure) -> int | None:
    """Every size once, until memory ends; the most throughput that kept the bounds."""
    return _best([measure(batch) for batch in _until_oom(rig, measure)], rig)


def doubling(rig: Rig, measure: Measure) -> int | None:
    """Double while the bounds are kept."""
    good = None
    batch = 1
    while batch <= rig.limits.max_batch and _keeps(measure(batch), rig):
        good, batch = batch, 2 * batch
    return good


def bisection(rig: Rig, measure: Measure) -> int | None:
    """Double, then halve the gap between the last size that kept the bounds and the first that did not."""
    low, high = 0, 1
    while high <= rig.limits.max_batch and _keeps(measure(high), rig):
        low, high = high, 2 * high
    high = min(high, rig.limits.max_batch + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _keeps(measure(middle), rig) else (low, middle)
    return low or None


def article(rig: Rig, measure: Measure) -> int | None:
    """The source article's rule: from 32, double while less than 0.9 of memory is in use, and answer the size that
    comes next, which was never run. Out of memory ends the program: it catches another error."""
    batch = _ARTICLE_START
    while True:
        run = measure(batch)
        if run.oom:
            return None
        if (run.peak_bytes or 0) >= rig.limits.memory_bytes:
            return batch
        if batch > rig.limits.max_batch:
            return batch
        batch *= 2


def tree_parzen(rig: Rig, measure: Measure) -> int | None:
    """Optuna's TPE, twenty trials over the logarithm of the size; a size that breaks a bound is worth nothing."""
    optuna = importlib.import_module("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=rig.seed))
    runs: list[Run] = []

    def objective(trial: Any) -> float:
        runs.append(measure(trial.suggest_int("batch", 1, rig.limits.max_batch, log=True)))
        return (runs[-1].throughput or 0.0) if _keeps(runs[-1], rig) else 0.0

    study.optimize(objective, n_trials=_TRIALS)
    return _best(runs, rig)


METHODS: dict[str, Method] = {
    "slipway": slipway,
    "slipway, good prior": with_good_prior,
    "slipway, prior 4 x too big": with_big_prior,
    "exhaustive": exhaustive,
    "doubling": doubling,
    "doubling and bisection": bisection,
    "optuna TPE, 20 trials": tree_parzen,
    "the article's rule": article,
}


def right_size(rig: Rig) -> int:
    """The smallest size that truly keeps every bound with throughput within the tolerance of the best; 1 if none."""
    enough = rig.best() * (1 - TOLERANCE)
    sizes = range(1, rig.limits.max_batch + 1)
    return next((batch for batch in sizes if rig.fits(batch) and rig.throughput(batch) >= enough), 1)


def can_be_shown(rig: Rig) -> bool:
    """Whether at some size the upper confidence limit of fifteen ordinary runs keeps the bound on latency, and the
    largest peak of five that on memory."""
    doubt = math.exp(_STUDENT_95 * rig.spread / math.sqrt(_RUNS))
    largest = math.exp(_LARGEST_95 * rig.memory_spread)
    bound = rig.limits.latency_ms.get(LATENCY, math.inf)
    return any(
        rig.peak_bytes(batch) * largest <= rig.limits.memory_bytes and rig.latency(batch) * doubt <= bound
        for batch in range(1, rig.limits.max_batch + 1)
    )


def score(method: Method, rigs: Sequence[Rig]) -> dict[str, float]:
    """What a method did on these rigs."""
    probed, runs, out, kept, missed = [], [], [], [], 0
    ratios, shown = [], []
    for rig in rigs:
        noise = random.Random(f"noise {rig.seed}")
        history: list[Run] = []

        def measure(
            batch: int, rig: Rig = rig, noise: random.Random = noise, history: list[Run] = history
        ) -> Run:
            history.append(rig.measure(batch, noise))
            return history[-1]

        answer = method(rig, measure)
        probed.append(len({run.batch for run in history}))
        runs.append(len(history))
        out.append(sum(run.oom for run in history))
        kept.append(answer is None or rig.fits(answer))
        best = rig.best()
        missed += answer is None and best > 0
        if best > 0:
            ratios.append(rig.throughput(answer) / best if answer is not None and rig.fits(answer) else 0.0)
        if can_be_shown(rig):
            shown.append(answer is not None and rig.fits(answer))
    return {
        "sizes": round(statistics.fmean(probed), 2),
        "runs": round(statistics.fmean(runs), 1),
        "out_of_memory": round(statistics.fmean(out), 3),
        "keeps_every_bound": round(statistics.fmean(kept), 4),
        "no_answer_though_one_fits": round(missed / len(rigs), 4),
        "fits_where_one_fits": round(statistics.fmean(ratio > 0 for ratio in ratios), 4),
        "fits_where_it_can_be_shown": round(statistics.fmean(shown), 4),
        "throughput_to_best_median": round(statistics.median(ratios), 4),
        "throughput_to_best_mean": round(statistics.fmean(ratios), 4),
    }


def _until_oom(rig: Rig, measure: Measure) -> Sequence[int]:
    sizes = range(1, rig.limits.max_batch + 1)
    last = next(
        (batch for batch in sizes if rig.peak_bytes(batch) > rig.capacity_bytes), rig.limits.max_batch
    )
    return range(1, last + 1)


def _best(runs: Sequence[Run], rig: Rig) -> int | None:
    good = [run for run in runs if _keeps(run, rig)]
    return max(good, key=lambda run: run.throughput or 0.0).batch if good else None


def _keeps(run: Run, rig: Rig) -> bool:
    bound = rig.limits.latency_ms.get(LATENCY)
    return (
        run.answered
        and (run.peak_bytes or 0) <= rig.limits.memory_bytes
        and (bound is None or run.latency_ms[LATENCY] <= bound)
    )


def main() -> None:
    """Score all methods on the rigs of `--first` to `--first + --count - 1`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, required=True, help="A seed that nothing was tuned with.")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    rigs = [make_rig(seed) for seed in range(options.first, options.first + options.count)]
    with with_optuna():
        found = {}
        for name, method in METHODS.items():
            found[name] = score(method, rigs)
            print(name, found[name])
    document = {"first_seed": options.first, "rigs": options.count, "methods": found}
    options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
