"""Score the placement search on generated machines, beside what one would do otherwise. Writes JSON.

Every method sees the same rigs (`placement_rigs.py`) with the same noise. Counted are the engine starts, how often
one ran out of memory, how often what was answered truly keeps every bound, and its true throughput against the best
that any placement has. No answer keeps every bound, and has no throughput.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.optuna import with_optuna
from benchmarks.placement_rigs import (
    LADDER,
    MEMORY_FRACTION,
    OffloadRig,
    SplitRig,
    make_offload_rig,
    make_split_rig,
)
from benchmarks.step_rigs import (
    BATCHED,
    BATCHED_LADDER,
    MICRO,
    MICRO_LADDER,
    StepRig,
    make_step_rig,
)
from tasks.batching.models import Ask, PlacedDecision, PlacedRun, Placement, Run, Space, StepTokens
from tasks.batching.placement.plan import next_placed_step
from tasks.batching.placement.trials import limits_of
from tasks.batching.plan import next_step

RESULTS = Path(__file__).parent / "results" / "placements.json"
_TRIALS = 30
_LARGE_GPU = 70 * 2**30

Measure = Callable[[Placement, int, int], Sequence[Run]]
"""A placement, a size and how many runs: one start of the engine. It ends with the first run that fails."""

Rig = OffloadRig | SplitRig | StepRig
Answer = tuple[Placement, int] | None
Method = Callable[[Rig, Measure], Answer]


def slipway(rig: Rig, measure: Measure) -> Answer:
    """The search of the batching stage."""
    space, history = space_of(rig), list[PlacedRun]()
    while True:
        step = next_placed_step(history, space)
        if isinstance(step, PlacedDecision):
            return (step.placement, step.batch) if step.placement and step.batch else None
        runs = measure(step.placement, step.batch, step.runs)
        history += [PlacedRun(placement=step.placement, run=run) for run in runs]


def one_placement(rig: Rig, measure: Measure) -> Answer:
    """All layers on the GPU, all GPUs at a little less memory than may be used, or the engine's own steps: only the
    size is searched."""
    placement = Placement() if isinstance(rig, StepRig) else Placement(gpu_layers=rig.footprint.layers + 1)
    if isinstance(rig, SplitRig):
        placement = max(_first_of_each_size(rig), key=lambda one: one.gpus)
    limits, history = limits_of(placement, space_of(rig)), list[Run]()
    while isinstance(step := next_step(history, limits), Ask):
        history += measure(placement, step.batch, step.runs)
    return (placement, step.batch) if step.batch else None


def exhaustive(rig: Rig, measure: Measure) -> Answer:
    """Every placement at every size up to 8, then at each a quarter above the one before; the best that kept the
    bounds."""
    tried = [
        (placement, run)
        for placement in _grid(rig)
        for batch in _sizes(rig)
        for run in measure(placement, batch, 1)
    ]
    return _best(tried, rig)


def at_random(rig: Rig, measure: Measure) -> Answer:
    """Placements and logarithms of sizes drawn at random; the best that kept the bounds."""
    draw = random.Random(f"random {rig.seed}")
    grid, sizes = list(_grid(rig)), list(_sizes(rig))
    tried = []
    for _ in range(_TRIALS):
        placement = draw.choice(grid)
        tried += [(placement, run) for run in measure(placement, draw.choice(sizes), 1)]
    return _best(tried, rig)


def tree_parzen(rig: Rig, measure: Measure) -> Answer:
    """Optuna's TPE over the same knobs and the logarithm of the size; what breaks a bound is worth nothing."""
    optuna = importlib.import_module("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=rig.seed))
    grid = list(_grid(rig))
    tried: list[tuple[Placement, Run]] = []

    def objective(trial: Any) -> float:
        if isinstance(rig, OffloadRig):
            placement = Placement(gpu_layers=trial.suggest_int("layers", 1, rig.footprint.layers + 1))
        elif isinstance(rig, StepRig):
            placement = grid[trial.suggest_categorical("steps", list(range(len(grid))))]
        else:
            placement = Placement(
                gpus=trial.suggest_categorical("gpus", sorted({one.gpus for one in grid})),
                memory_fraction=trial.suggest_float("fraction", 0.5, MEMORY_FRACTION, step=0.01),
                batched_tokens=trial.suggest_categorical("tokens", [None, *LADDER]),
            )
        (run,) = measure(placement, trial.suggest_int("batch", 1, rig.limits.max_batch, log=True), 1)
        tried.append((placement, run))
        return (run.throughput or 0.0) if rig.keeps(placement, run) else 0.0

    study.optimize(objective, n_trials=_TRIALS)
    return _best(tried, rig)


METHODS: dict[str, Method] = {
    "slipway": slipway,
    "one placement": one_placement,
    "exhaustive": exhaustive,
    f"random, {_TRIALS} trials": at_random,
    f"optuna TPE, {_TRIALS} trials": tree_parzen,
}


def space_of(rig: Rig) -> Space:
    """What the search is told of a rig: predictions and sizes, nothing of its times."""
    if isinstance(rig, StepRig):
        return Space(
            knob=None,
            footprint=rig.footprint,
            devices=rig.devices,
            limits=rig.limits,
            batched_tokens=StepTokens(default=BATCHED, values=BATCHED_LADDER),
            micro_batch_tokens=StepTokens(default=MICRO, values=MICRO_LADDER),
            requests=rig.requests,
            by_slot=True,
        )
    split = isinstance(rig, SplitRig)
    return Space(
        knob="tensor_parallel" if split else "offload",
        footprint=rig.footprint,
        devices=rig.devices,
        limits=rig.limits,
        memory_fraction=MEMORY_FRACTION,
        batched_tokens=StepTokens(
            default=8192 if rig.devices.gpu_bytes[0] >= _LARGE_GPU else 2048, values=LADDER
        )
        if split
        else StepTokens(),
    )


def score(method: Method, rigs: Sequence[Rig]) -> dict[str, float]:
    """What a method did on these rigs."""
    starts, out, kept, ratios, missed, placements = [], [], [], [], 0, []
    for rig in rigs:
        answer, asked = run(method, rig)
        starts.append(len(asked))
        placements.append(len({placement for placement, _ in asked}))
        out.append(sum(any(one.oom for one in runs) for _, runs in asked))
        kept.append(answer is None or rig.fits(*answer))
        best = rig.best()
        missed += answer is None and best > 0
        if best > 0:
            good = answer is not None and rig.fits(*answer)
            ratios.append((rig.truth(*answer).throughput or 0.0) / best if answer and good else 0.0)
    return {
        "placements": round(statistics.fmean(placements), 2),
        "engine_starts": round(statistics.fmean(starts), 2),
        "most_engine_starts": max(starts),
        "out_of_memory": round(statistics.fmean(out), 3),
        "keeps_every_bound": round(statistics.fmean(kept), 4),
        "no_answer_though_one_fits": round(missed / len(rigs), 4),
        "throughput_to_best_median": round(statistics.median(ratios), 4),
        "throughput_to_best_mean": round(statistics.fmean(ratios), 4),
    }


def run(method: Method, rig: Rig) -> tuple[Answer, list[tuple[Placement, list[Run]]]]:
    """What a method answers on a rig, and every start that it asked for."""
    noise = random.Random(f"noise {rig.seed}")
    asked: list[tuple[Placement, list[Run]]] = []

    def measure(placement: Placement, batch: int, runs: int) -> Sequence[Run]:
        found: list[Run] = []
        while len(found) < runs and not (found and not found[-1].answered):
            found.append(rig.measure(placement, batch, noise))
        asked.append((placement, found))
        return found

    return method(rig, measure), asked


def _first_of_each_size(rig: SplitRig) -> Iterator[Placement]:
    for placement in rig.placements():
        if placement.batched_tokens is None:
            yield placement.model_copy(update={"memory_fraction": MEMORY_FRACTION - 0.05})


def _grid(rig: Rig) -> Iterable[Placement]:
    if not isinstance(rig, SplitRig):
        return rig.placements()
    told = list(dict.fromkeys((one.gpus, one.batched_tokens) for one in rig.placements()))
    return [
        Placement(gpus=gpus, memory_fraction=fraction / 100, batched_tokens=tokens)
        for gpus, tokens in told
        for fraction in range(50, 91, 5)
    ]


def _sizes(rig: Rig) -> Iterator[int]:
    size = 1
    while size < rig.limits.max_batch:
        yield size
        size += max(1, size // 4)
    yield rig.limits.max_batch


def _best(tried: Sequence[tuple[Placement, Run]], rig: Rig) -> Answer:
    good = [(placement, one) for placement, one in tried if rig.keeps(placement, one)]
    if not good:
        return None
    placement, one = max(good, key=lambda pair: pair[1].throughput or 0.0)
    return placement, one.batch


def main() -> None:
    """Score all methods on the rigs of `--first` to `--first + --count - 1`, of both kinds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, required=True, help="A seed that nothing was tuned with.")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.count)
    kinds: dict[str, list[Rig]] = {
        "offload": [make_offload_rig(seed) for seed in seeds],
        "tensor_parallel": [make_split_rig(seed) for seed in seeds],
        "steps": [make_step_rig(seed) for seed in seeds],
    }
    found: dict[str, dict[str, dict[str, float]]] = {}
    with with_optuna():
        for kind, rigs in kinds.items():
            found[kind] = {}
            for name, method in METHODS.items():
                found[kind][name] = score(method, rigs)
                print(kind, name, found[kind][name], flush=True)
    document = {"first_seed": options.first, "rigs": options.count, "methods": found}
    options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
