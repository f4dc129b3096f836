"""What was measured, by steps. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tasks.batching.judging import MEMORY, doubt, summarise
from tasks.batching.models import Ask, Decision, Fit, Limits, Run, SizeFigures, SteppedRun, Steps, StepSpace
from tasks.batching.plan import REPEATS, ended_by_memory, measured_each_bytes, next_step


class Proposal(NamedTuple):
    """Steps that were not measured yet, and the size to begin with."""

    steps: Steps
    batch: int


@dataclass(frozen=True)
class Trial:
    """One choice of steps: its runs by size, what the search for its batch size wants next, and whether memory is
    what larger sizes lack."""

    steps: Steps
    limits: Limits
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
        """The most throughput that it is known for, tokens/s; 0 if nothing keeps the bounds."""
        return max((size.throughput for size in self.sure), default=0.0)

    @property
    def want_of_memory(self) -> bool:
        """Whether memory, and nothing else, is why no size fits."""
        return all(size.fit in MEMORY for size in self.sizes.values())

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


def sort_trials(history: Sequence[SteppedRun], space: StepSpace) -> list[Trial]:
    """One trial for each choice of steps, in the order in which they were tried: the engine's own come first."""
    trials: list[Trial] = []
    for steps in dict.fromkeys(one.steps for one in history):
        runs = [one.run for one in history if one.steps == steps]
        trials.append(_sum_up(steps, runs, limits_of(steps, space), _each_bytes(trials)))
    return trials


def _each_bytes(trials: Sequence[Trial]) -> float | None:
    """What a sequence adds to memory, according to earlier trials."""
    slopes = (measured_each_bytes(trial.sizes) for trial in reversed(trials))
    return next((slope for slope in slopes if slope is not None), None)


def limits_of(steps: Steps, space: StepSpace) -> Limits:
    """The bounds with these steps: no more sequences than they have room for."""
    most = min(space.limits.max_batch, most_in_steps(steps, space))
    return space.limits.model_copy(update={"max_batch": max(1, most)})


def most_in_steps(steps: Steps, space: StepSpace) -> int:
    """The most sequences that the tokens of a step are enough for.

    Each takes one, so that vLLM does not start with more. Where prompts are taken in the order of slots, the last
    slots wait for ever once the others' prompts fill every step: of `b` tokens a step, a slot of which each request
    has `p` tokens of prompt and `a` of answer takes `p + a` in `p / b + a` steps. Measured with llama.cpp: at 512 and
    32, eight slots at 64 tokens and four at 32 hang; eight at 128 and four at 64 do not.
    """
    tokens = steps.batched_tokens or space.batched_tokens.default
    if tokens is None:
        return space.limits.max_batch
    asked = space.requests
    if asked is None or not space.by_slot:
        return tokens
    prompt, answer = asked.prompt_tokens, asked.output_tokens
    return min(tokens, (prompt + answer * tokens) // (prompt + answer))


def _sum_up(steps: Steps, runs: Sequence[Run], limits: Limits, each: float | None) -> Trial:
    sizes = summarise(runs, limits)
    return Trial(
        steps=steps,
        limits=limits,
        sizes=sizes,
        step=next_step(runs, limits, each_bytes=each),
        ended_by_memory=ended_by_memory(sizes, limits, each),
    )
