"""How many tokens to take a step, once a batch size is known: the next number worth measuring. Pure.

A step computes the next token of every sequence, and of new prompts as many tokens as there is room for. More room
takes prompts in faster and costs memory; while a long step lasts, no other sequence gets its token.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from tasks.batching.models import StepSpace, StepTokens
from tasks.batching.steps.trials import Proposal, Trial, most_in_steps

_MOST_TRIALS = 8
"""Settings of the steps that are measured at the most."""

_FIRST = "ttft"
_QUICKER = 0.97
"""What differs by less is as quick."""

_Knob = Literal["batched_tokens", "micro_batch_tokens"]
_KNOBS: tuple[_Knob, ...] = ("batched_tokens", "micro_batch_tokens")


def propose_steps(trials: Sequence[Trial], space: StepSpace) -> Proposal | None:
    """Another number of tokens; None if no other can be better.

    First the way that should help; if it gives no more, the next way is tried.
    """
    base = trials[0]
    if base.claim and space.limits.rate_per_s is not None:
        return None  # in an open loop the throughput is the rate, and cannot grow
    if len(trials) > _MOST_TRIALS:
        return None
    for knob in _KNOBS:
        found = _along(knob, base, trials, space)
        if isinstance(found, Proposal):
            return found
        base = found
    return None


def _along(knob: _Knob, base: Trial, trials: Sequence[Trial], space: StepSpace) -> Proposal | Trial:
    """The next value of this knob, with the other settings of `base`; the best trial so far if there is none."""
    best, gains = base, 0
    for way in _ways(knob, base, space):
        if gains and not (way.turns and gains == 1):
            break
        for tokens in way.values:
            steps = base.steps.model_copy(update={knob: tokens})
            found = next((trial for trial in trials if trial.steps == steps), None)
            if found is None:
                batch = way.batch if best is base else _size(best)
                return Proposal(steps, max(1, min(batch, most_in_steps(steps, space))))
            if found.claim > best.claim * (1 + space.limits.tolerance):
                best, gains = found, gains + 1
            elif not (way.on(found, base) or (not best.claim and found.want_of_memory)):
                break
    return best


def _size(trial: Trial) -> int:
    return max(trial.sure, key=lambda size: size.throughput).batch if trial.sure else 1


class _Way(NamedTuple):
    """Numbers to try one after the other as long as each gives more throughput, the first of them at batch size
    `batch`. A way is tried if the ways before it gave nothing.

    A way that `turns` starts from the first number of the way before and goes in the other direction; it is tried too
    if only that first number gave more. A way that `shortens` continues if the pauses at `batch` became shorter, but
    not short enough.
    """

    values: Sequence[int]
    batch: int
    turns: bool = False
    shortens: bool = False

    def on(self, found: Trial, base: Trial) -> bool:
        """Whether to continue although this number gave no more throughput."""
        size, before = found.sizes.get(self.batch), base.sizes.get(self.batch)
        if not self.shortens or size is None or before is None or size.fits:
            return False
        return any(
            size.latency_ms.get(name, math.inf) < before.latency_ms.get(name, 0.0) * _QUICKER
            for name, bound in base.limits.latency_ms.items()
            if not name.startswith(_FIRST) and before.latency_ms.get(name, 0.0) > bound
        )


def _ways(knob: _Knob, base: Trial, space: StepSpace) -> Sequence[_Way]:
    """The ways to try: shorter steps first if pauses limit the batch size, else longer ones.

    Shorter steps may also leave more memory, unless another knob sets how many tokens are computed at once. Then
    that knob leaves more memory; fewer tokens are slower, so they are only tried if memory limits the batch size.
    """
    known: StepTokens = getattr(space, knob)
    values = sorted(known.values)
    default = known.default or (values[len(values) // 2] - 1 if values else 0)  # half of them are fewer
    batch = _size(base)
    at_once = _most_at_once(base, space)
    if knob == "micro_batch_tokens":
        step = base.steps.batched_tokens or space.batched_tokens.default or max(values, default=0)
        own = min(default, step)
        if base.ended_by_memory:
            return (_Way([one for one in reversed(values) if one < own], batch),)
        return (_Way(_reached([one for one in values if own < one <= step], own, at_once), batch),)
    if not base.claim and base.want_of_memory:
        return ()
    more = _Way(_reached([one for one in values if one > default], default, at_once), batch)
    fewer = [one for one in values if one < default]
    if (paused := _paused_from(base)) is not None:
        return (*_shorter(fewer, base, paused, at_once, space), more)
    return (more,) if space.micro_batch_tokens.values else (more, _Way(fewer[::-1], batch))


def _shorter(
    fewer: Sequence[int], base: Trial, paused: int, at_once: float, space: StepSpace
) -> tuple[_Way, ...]:
    """From the middle of the numbers that may help towards shorter steps, then towards longer ones.

    They are tried at the first size that was too large because of pauses, if it can show whether the pauses are
    shorter: a single sequence waits for no other.
    """

    def helps(tokens: int) -> bool:
        steps = base.steps.model_copy(update={"batched_tokens": tokens})
        return tokens < at_once and most_in_steps(steps, space) > _size(base)

    found = [tokens for tokens in fewer if helps(tokens)]
    if paused < 2 or not found:
        return ()
    middle = len(found) // 2
    return (_Way(found[middle::-1], paused, shortens=True), _Way(found[middle + 1 :], paused, turns=True))


def _most_at_once(base: Trial, space: StepSpace) -> float:
    """Tokens of prompts that can come at once: one of each sequence, at the largest size that was measured."""
    return max(base.sizes) * space.requests.prompt_tokens if space.requests else math.inf


def _reached(more: Sequence[int], default: int, at_once: float) -> Sequence[int]:
    """Longer ones, as far as prompts can fill them."""
    return [one for before, one in itertools.pairwise([default, *more]) if before < at_once]


def _paused_from(base: Trial) -> int | None:
    """The smallest size beyond the best at which tokens came too slowly, one after the other; None if at no size."""
    sizes = [
        size.batch
        for size in base.sizes.values()
        for name, bound in base.limits.latency_ms.items()
        if not name.startswith(_FIRST) and size.latency_ms.get(name, 0.0) > bound
    ]
    return min((batch for batch in sizes if batch > _size(base) or not base.sure), default=None)
