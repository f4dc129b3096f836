"""What was measured, by placement. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tasks.batching.judging import MEMORY, doubt, summarise
from tasks.batching.models import (
    Ask,
    Decision,
    Fit,
    Limits,
    PlacedRun,
    Placement,
    Run,
    SizeFigures,
    Space,
)
from tasks.batching.placement.memory import blocks, most_on_host
from tasks.batching.plan import REPEATS, ended_by_memory, measured_each_bytes, next_step


class Proposal(NamedTuple):
    """A placement that was not measured yet, and the size to begin with."""

    placement: Placement
    batch: int


@dataclass(frozen=True)
class Trial:
    """One placement: its runs by size, what the search for its batch size wants next, and whether memory is what
    larger sizes lack."""

    placement: Placement
    limits: Limits
    runs: Sequence[Run]
    sizes: Mapping[int, SizeFigures]
    step: Ask | Decision
    ended_by_memory: bool

    @property
    def sure(self) -> list[SizeFigures]:
        """Sizes that keep every bound, smallest first, those left out that were measured often and leave a doubt."""
        return [
            size
            for _, size in sorted(self.sizes.items())
            if size.fits and not (size.runs >= REPEATS and doubt(size, self.limits))
        ]

    @property
    def claim(self) -> float:
        """The most throughput that it is known for, tokens/s; 0 where nothing keeps the bounds."""
        return max((size.throughput for size in self.sure), default=0.0)

    @property
    def settled(self) -> bool:
        """Whether its own search has decided."""
        return isinstance(self.step, Decision)

    @property
    def want_of_memory(self) -> bool:
        """Whether memory, and nothing else, is why no size fits."""
        return all(size.fit in MEMORY for size in self.sizes.values())

    @property
    def own_place(self) -> Placement:
        """The same place, with the engine's own steps."""
        return self.placement.model_copy(update={"batched_tokens": None, "micro_batch_tokens": None})

    @property
    def slips(self) -> bool:
        """Whether a size failed once, which may have been a mishap, and is to be measured again."""
        if not isinstance(self.step, Ask):
            return False
        again = self.sizes.get(self.step.batch)
        return again is not None and again.fit is Fit.FAILED

    @property
    def grows(self) -> bool:
        """Whether its search still looks for more throughput; for a smaller size only the answer's does."""
        if not isinstance(self.step, Ask) or self.step.runs > 1:
            return False
        fitting = [size.batch for size in self.sure]
        return not fitting or self.step.batch > min(fitting) or self.step.batch in self.sizes


def sort_trials(history: Sequence[PlacedRun], space: Space) -> list[Trial]:
    """One trial for each placement, in the order in which they were first tried."""
    trials: list[Trial] = []
    for placement in dict.fromkeys(placed.placement for placed in history):
        runs = [placed.run for placed in history if placed.placement == placement]
        trials.append(_sum_up(placement, runs, space, _each_bytes(placement, trials, space)))
    return trials


def _each_bytes(placement: Placement, trials: Sequence[Trial], space: Space) -> float | None:
    """What a sequence adds to the GPUs' memory; on the host as much as it did in the trial before."""
    if space.knob is None:
        slopes = (measured_each_bytes(trial.sizes) for trial in reversed(trials))
        return next((slope for slope in slopes if slope is not None), None)
    return float(blocks(space.footprint, placement.gpu_layers) * space.footprint.kv_bytes)


def limits_of(placement: Placement, space: Space) -> Limits:
    """The bounds of a placement: memory of the GPUs that it uses, and no more sequences than the host has room for,
    or than its steps have.

    The host's memory is not measured: of what is mapped from a file it cannot be told whether it is needed.
    """
    most = float(min(space.limits.max_batch, most_in_steps(placement, space)))
    memory = space.limits.memory_bytes
    if space.knob == "offload":
        host = space.devices.host_bytes * space.memory_fraction
        most = min(most, most_on_host(space.footprint, placement.gpu_layers, host))
    elif space.knob == "tensor_parallel":
        gpus = space.devices.gpu_bytes
        memory = int(memory * sum(gpus[: placement.gpus]) / sum(gpus))
    return space.limits.model_copy(update={"memory_bytes": memory, "max_batch": max(1, math.floor(most))})


def most_in_steps(placement: Placement, space: Space) -> int:
    """The most sequences that the tokens of a step are enough for.

    Each takes one, so that vLLM does not start with more. Where prompts are taken in the order of slots, the last
    slots wait for ever once the others' prompts fill every step: of `b` tokens a step, a slot of which each request
    has `p` tokens of prompt and `a` of answer takes `p + a` in `p / b + a` steps. Measured with llama.cpp: at 512 and
    32, eight slots at 64 tokens and four at 32 hang; eight at 128 and four at 64 do not.
    """
    tokens = placement.batched_tokens or space.batched_tokens.default
    if tokens is None:
        return space.limits.max_batch
    asked = space.requests
    if asked is None or not space.by_slot:
        return tokens
    prompt, answer = asked.prompt_tokens, asked.output_tokens
    return min(tokens, (prompt + answer * tokens) // (prompt + answer))


def _sum_up(placement: Placement, runs: Sequence[Run], space: Space, each: float | None) -> Trial:
    limits = limits_of(placement, space)
    sizes = summarise(runs, limits)
    return Trial(
        placement=placement,
        limits=limits,
        runs=runs,
        sizes=sizes,
        step=next_step(runs, limits, each_bytes=each),
        ended_by_memory=ended_by_memory(sizes, limits, each),
    )
