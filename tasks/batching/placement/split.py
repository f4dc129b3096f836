"""Over how many GPUs to split each layer, and of how much of their memory: the next placement worth measuring. Pure.

All GPUs that may be used come first, then fewer, as long as that gives as much. Where the memory that the engine was
told to take is not there, it is told to take less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tasks.batching.models import Placement, Run, Space
from tasks.batching.placement.trials import Proposal, Trial, limits_of
from tasks.engines.out_of_memory import free_share, wants_a_larger_share

_STEPS = (0.05, 0.05, 0.1, 0.1)
"""By how much less memory is asked for, each time that an engine does not find what it was told to take."""

_MARGIN = 0.005

_BESIDE = 0.01
"""An engine holds a little more than it was told to take, so it is told a little less than may be used."""


def propose_split(trials: Sequence[Trial], space: Space, prior: int | None) -> Proposal | None:
    """The next placement; None where no other can be better."""
    best, batch = 0.0, prior or 1
    for gpus in reversed(sizes(space)):
        same = [one for one in trials if one.placement.gpus == gpus and not one.placement.steps_told]
        if not same:
            fraction = _known_fraction(trials) or space.memory_fraction - _BESIDE
            if not holds(space, gpus, fraction):
                break
            placement = Placement(gpus=gpus, memory_fraction=round(fraction, 2))
            return Proposal(placement, min(batch, limits_of(placement, space).max_batch))
        last = same[-1]
        if (less := ask_for_less(last, trials, space)) is not None:
            return Proposal(last.placement.model_copy(update={"memory_fraction": less}), min(last.sizes))
        if last.claim < best * (1 - space.limits.tolerance) or (last.claim == 0 and last.want_of_memory):
            break
        if last.claim > best:
            best = last.claim
            batch = max(last.sure, key=lambda size: size.throughput).batch
    return None


def widest(space: Space) -> Placement:
    """Over all GPUs that the heads can be dealt out to."""
    return Placement(gpus=sizes(space)[-1], memory_fraction=round(space.memory_fraction - _BESIDE, 2))


def sizes(space: Space) -> list[int]:
    """Tensor-parallel sizes: those that the attention heads can be dealt out to, on GPUs that are there.

    Fewer key-value heads than GPUs are copied, so either number divides the other.
    """
    heads, kv_heads = space.footprint.heads, space.footprint.kv_heads
    return [
        gpus
        for gpus in range(1, len(space.devices.gpu_bytes) + 1)
        if heads % gpus == 0 and (kv_heads % gpus == 0 or gpus % kv_heads == 0)
    ]


def pool_bytes(space: Space, gpus: int, fraction: float) -> float:
    """What is left for caches of what an engine takes of each GPU, at the most, bytes."""
    footprint = space.footprint
    weights = footprint.layers * footprint.layer_bytes + footprint.output_bytes
    return fraction * min(space.devices.gpu_bytes[:gpus]) - weights / gpus


def holds(space: Space, gpus: int, fraction: float) -> bool:
    """Whether weights and one sequence may fit."""
    footprint = space.footprint
    heads = max(1.0, footprint.kv_heads / gpus)
    cache = footprint.layers * footprint.kv_bytes * heads / footprint.kv_heads
    return pool_bytes(space, gpus, fraction) > cache


def ask_for_less(trial: Trial, trials: Sequence[Trial], space: Space) -> float | None:
    """The share of memory to ask for after this trial; None where that is not what helps."""
    fraction = trial.placement.memory_fraction
    if trial.claim or not trial.want_of_memory or any(_starved(run) for run in trial.runs):
        return None
    known = _known_fraction(trials)
    peaks = [size.peak_bytes for size in trial.sizes.values() if size.peak_bytes]
    shares = [share for run in trial.runs if (share := free_share(_said(run))) is not None]
    if peaks:
        beyond = max(peaks) / trial.limits.memory_bytes - 1
        less = fraction - max(0.01, beyond * space.memory_fraction + _MARGIN)
    elif known is not None and fraction <= known:
        return None  # as much was there before: it is the model that does not fit
    elif shares:
        less = min(fraction - 0.01, min(shares) - _MARGIN)
    else:
        gpus = trial.placement.gpus
        same = [one for one in trials if one.placement.gpus == gpus and not one.placement.steps_told]
        if len(same) > len(_STEPS):
            return None
        less = fraction - _STEPS[len(same) - 1]
    less = math.floor(less * 100 + 1e-6) / 100
    return less if less > 0 and holds(space, trial.placement.gpus, less) else None


def _known_fraction(trials: Sequence[Trial]) -> float | None:
    """The share of memory that engines were last seen to find."""
    return next(
        (
            trial.placement.memory_fraction
            for trial in reversed(trials)
            if any(size.peak_bytes for size in trial.sizes.values())
        ),
        None,
    )


def _starved(run: Run) -> bool:
    return wants_a_larger_share(_said(run))


def _said(run: Run) -> str:
    failure = run.fault
    return f"{failure.what}\n{failure.log_tail or ''}" if failure else ""
