"""How many tokens to take a step, once a model's place is known: the next number worth measuring. Pure.

A step computes the next token of every sequence, and of new prompts as many tokens as there is room for. More room
takes prompts in faster and costs memory; while a long step lasts, no other sequence gets its token.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

from tasks.batching.models import Space
from tasks.batching.placement.trials import Proposal, Trial, most_in_steps

_FIRST = "ttft"

_Knob = Literal["batched_tokens", "micro_batch_tokens"]
_KNOBS: tuple[_Knob, ...] = ("batched_tokens", "micro_batch_tokens")


def propose_steps(trials: Sequence[Trial], space: Space) -> Proposal | None:
    """Another number of tokens for the placement that did best; None where no other can be better.

    First the way that should help; where the first number of a way gives no more, the next way is tried.
    """
    own = [trial for trial in trials if not trial.placement.steps_told]
    base = max(own, key=lambda trial: (trial.claim, trial.placement.gpus), default=None)
    if base is None or (base.claim and space.limits.rate_per_s is not None):
        return None  # in an open loop the throughput is the rate: there is no more of it
    for knob in _KNOBS:
        found = _along(knob, base, trials, space)
        if isinstance(found, Proposal):
            return found
        base = found
    return None


def _along(knob: _Knob, base: Trial, trials: Sequence[Trial], space: Space) -> Proposal | Trial:
    """The next number of this knob beside what `base` is told, or the best that is known when there is none."""
    best = base
    for way in _ways(knob, base, space):
        for tokens in way:
            placement = base.placement.model_copy(update={knob: tokens})
            found = next((trial for trial in trials if trial.placement == placement), None)
            if found is None:
                return Proposal(placement, max(1, min(_size(best), most_in_steps(placement, space))))
            if found.claim <= best.claim * (1 + space.limits.tolerance):
                break
            best = found
        if best is not base:
            break
    return best


def _size(trial: Trial) -> int:
    return max(trial.sure, key=lambda size: size.throughput).batch if trial.sure else 1


def _ways(knob: _Knob, base: Trial, space: Space) -> Sequence[Sequence[int]]:
    """Fewer tokens a step first where the time between tokens ends the batch sizes, else more.

    Fewer may also leave more memory, unless another knob says how many of them are computed at once: then it is fewer
    of those, and as they are slower, only where memory ends the sizes.
    """
    fewer, more = _worth(knob, base, space)
    if knob == "micro_batch_tokens":
        return (fewer if base.ended_by_memory else more,)
    if not base.claim and base.want_of_memory:
        return ()
    if _ended_by_pauses(base):
        return (fewer, more) if base.sure else (more,)  # a single sequence waits for no other
    return (more,) if space.micro_batch_tokens.values else (more, fewer)


def _worth(knob: _Knob, base: Trial, space: Space) -> tuple[Sequence[int], Sequence[int]]:
    """Fewer and more than the engine's own, the nearest first: those that can make a difference."""
    values = sorted(getattr(space, knob).values)
    default = getattr(space, knob).default
    if default is None and values:
        default = values[len(values) // 2] - 1  # so that half of them are fewer
    fewer = [one for one in reversed(values) if one < default]
    more = [one for one in values if one > default]
    if knob == "micro_batch_tokens" and (
        step := base.placement.batched_tokens or space.batched_tokens.default
    ):
        fewer, more = ([one for one in way if one <= step] for way in (fewer, more))
    if space.requests is None:
        return fewer, more
    # No more prompts can come at once than there are sequences, and a step that holds a whole one is no pause less.
    prompt = space.requests.prompt_tokens
    most = _size(base) * prompt
    fewer = [one for one in fewer if one < most]
    more = [one for before, one in itertools.pairwise([default or math.inf, *more]) if before < most]
    return [one for one in fewer if one < prompt] or fewer[-1:], more


def _ended_by_pauses(base: Trial) -> bool:
    missed = {
        name
        for size in base.sizes.values()
        for name, bound in base.limits.latency_ms.items()
        if size.latency_ms.get(name, 0.0) > bound
    }
    return any(not name.startswith(_FIRST) for name in missed)
