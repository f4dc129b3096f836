"""How many layers to put on the GPUs: the next number worth measuring. Pure.

All of them, where they fit. Where they do not, the most that do: memory is predicted, and corrected by each measured
peak. Fewer leave more memory to caches, and so may serve more at once: how much that would give is predicted from
how long steps took, and tried where it would be more than what is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from tasks.batching.models import Fit, Placement, Space
from tasks.batching.placement.memory import Memory, Peak, all_layers, blocks, learn_memory
from tasks.batching.placement.step_times import Step, StepTimes, learn_steps
from tasks.batching.placement.trials import Proposal, Trial, most_in_steps

MOST_TRIALS = 8
"""Placements measured at the most."""

_NEAR = 0.99
"""Throughput that is as good as the most: the size is a little smaller then, and memory not used to the last byte."""

_SHRINK = 0.95
"""An engine that was out of memory needs so much of it that the next one is predicted to need this share at most."""


def propose_layers(trials: Sequence[Trial], space: Space, prior: int | None) -> Proposal | None:
    """The next number of layers; None where no other can be better."""
    trials = _untold(trials)
    memory = learn_memory(space.footprint, list(_peaks(trials)), space.limits.memory_bytes)
    room = _rooms(trials, space, memory)
    if not room and not trials:  # only what surely cannot fit is never tried
        room = _rooms(trials, space, Memory(space.footprint, weights=1.0, beside_bytes=0.0, each_bytes=0.0))
    if not room or len(trials) >= MOST_TRIALS:
        return None
    best = max((trial.claim for trial in trials), default=0.0)
    most_layers = max(room)
    if not trials:
        return _proposal(most_layers, min(prior or 1, room[most_layers]))
    if best == 0:
        return _nearest(trials, room)
    if space.limits.rate_per_s is not None:
        return None  # the throughput is the rate: there is no more of it
    return _better(trials, space, room, best)


def most_layers(space: Space, batch: int) -> Placement:
    """As many layers on the GPUs as are predicted to fit beside the caches of `batch` sequences; at the least one."""
    room = _rooms([], space, learn_memory(space.footprint, [], space.limits.memory_bytes))
    return Placement(gpu_layers=max((layers for layers, most in room.items() if most >= batch), default=1))


def expect(trial: Trial, trials: Sequence[Trial], space: Space) -> tuple[float, int]:
    """The most throughput that is expected of a placement after all that was measured, and the size to have it at."""
    memory = learn_memory(space.footprint, list(_peaks(trials)), space.limits.memory_bytes)
    layers = trial.placement.gpu_layers
    most = _rooms(trials, space, memory).get(layers, 0)
    steps = list(_steps(trials, space))
    return _predict(layers, most, learn_steps(steps), space) if steps else (math.inf, most)


def room_of(trial: Trial, trials: Sequence[Trial], space: Space) -> int:
    """Sequences for which a placement is expected to have memory."""
    memory = learn_memory(space.footprint, list(_peaks(trials)), space.limits.memory_bytes)
    return _rooms(trials, space, memory).get(trial.placement.gpu_layers, 0)


def _rooms(trials: Sequence[Trial], space: Space, memory: Memory) -> dict[int, int]:
    """By number of layers: the sequences for which there is memory; only where there is for one."""
    gpu_limit, host_limit = float(space.limits.memory_bytes), space.devices.host_bytes * space.memory_fraction
    broken = sorted(
        memory.gpu_bytes(trial.placement.gpu_layers, min(trial.sizes))
        for trial in _untold(trials)
        if all(size.fit is Fit.OUT_OF_MEMORY for size in trial.sizes.values())
    )
    if broken:
        gpu_limit = min(gpu_limit, broken[0] * _SHRINK ** len(broken))
    found = {
        layers: memory.most(layers, gpu_limit, host_limit)
        for layers in range(1, all_layers(space.footprint) + 1)
    }
    bound = min(space.limits.max_batch, most_in_steps(Placement(), space))
    return {layers: min(most, bound) for layers, most in found.items() if most >= 1}


def _nearest(trials: Sequence[Trial], room: dict[int, int]) -> Proposal | None:
    """After placements that did not do: the most layers that may still fit, if that was the trouble."""
    last = trials[-1]
    tried = {trial.placement.gpu_layers for trial in trials}
    below = last.placement.gpu_layers
    fitting = [layers for layers in room if layers not in tried]
    if last.want_of_memory:
        fitting = [layers for layers in fitting if layers < below]
    else:  # more of them on the GPUs are faster; fewer would be slower still
        fitting = [layers for layers in fitting if layers > below]
    return _proposal(max(fitting), 1) if fitting else None


def _better(trials: Sequence[Trial], space: Space, room: dict[int, int], best: float) -> Proposal | None:
    """The number that is predicted to give most, if that is more than the best that was measured."""
    tried = {trial.placement.gpu_layers for trial in trials}
    times = learn_steps(list(_steps(trials, space)))
    found = {
        layers: _predict(layers, most, times, space) for layers, most in room.items() if layers not in tried
    }
    if not found:
        return None
    layers = max(found, key=lambda one: found[one][0])
    throughput, batch = found[layers]
    return _proposal(layers, batch) if throughput > best * (1 + space.limits.tolerance) else None


def _predict(layers: int, most: int, times: StepTimes, space: Space) -> tuple[float, int]:
    """The most throughput with so many layers on GPUs, and the smallest size that gives nearly that."""
    on = blocks(space.footprint, layers)
    off = space.footprint.layers - on
    reach = times.most(on, off, space.limits.latency_ms)
    batch = min(most, math.floor(min(reach, float(most))))
    if batch < 1:
        return 0.0, 1
    top = times.throughput(on, off, batch)
    # b / (s + e b) >= near * top, solved for b
    still = times.step_ms(on, off, 0.0)
    each = times.step_ms(on, off, 1.0) - still
    enough = _NEAR * top / 1000
    if still > 0 and enough * each < 1:
        batch = min(batch, max(1, math.ceil(enough * still / (1 - enough * each))))
    return top, batch


def _proposal(layers: int, batch: int) -> Proposal:
    return Proposal(Placement(gpu_layers=layers), max(1, batch))


def _untold(trials: Sequence[Trial]) -> list[Trial]:
    """Those with the engine's own steps: memory and times are fitted to these alone."""
    return [trial for trial in trials if not trial.placement.steps_told]


def _peaks(trials: Sequence[Trial]) -> Iterator[Peak]:
    for trial in _untold(trials):
        for size in trial.sizes.values():
            if size.peak_bytes:
                yield Peak(trial.placement.gpu_layers, size.batch, size.peak_bytes)


def _steps(trials: Sequence[Trial], space: Space) -> Iterator[Step]:
    for trial in _untold(trials):
        on = blocks(space.footprint, trial.placement.gpu_layers)
        for size in trial.sizes.values():
            if size.throughput > 0:
                step_ms = 1000 * size.batch / size.throughput
                yield Step(on, space.footprint.layers - on, size.batch, step_ms, size.latency_ms)
