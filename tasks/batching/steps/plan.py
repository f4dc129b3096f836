"""The search for steps and their batch size. Pure: looks at what was measured and says what to measure next.

Around the search for a batch size. The engine's own steps come first; others are tried from the size that is expected
to be best there, and only as long as they can still beat the best that is known; what is answered is then measured as
often as its own search wants. Whatever it answers keeps this: steps and size were measured, `REPEATS` times; peak
memory and the upper confidence limits of latencies keep their bounds; throughput is within the tolerance of the best
that keeps them with any steps; of steps as good as that, the engine's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tasks.batching.models import Ask, Decision, SteppedAsk, SteppedDecision, SteppedRun, Steps, StepSpace
from tasks.batching.plan import REPEATS
from tasks.batching.steps.describe import describe, why_not
from tasks.batching.steps.proposals import propose_steps
from tasks.batching.steps.trials import Trial, limits_of, sort_trials

_NOISE = 0.03
"""Figures of single runs that differ by less are the same."""

_RETRIES = 2
"""Sizes that may turn out too large before the search for a batch size begins with one sequence."""


def next_stepped(
    history: Sequence[SteppedRun], space: StepSpace, prior: int | None = None
) -> SteppedAsk | SteppedDecision:
    """What to measure next, or the decision. `prior` is a batch size to start from, if one is known."""
    if not history:
        return SteppedAsk(steps=Steps(), batch=min(prior or 1, limits_of(Steps(), space).max_batch))
    trials = sort_trials(history, space)
    for trial in reversed(trials):
        if isinstance(trial.step, Ask) and trial.grows and _may_win(trial, trials, space):
            return _ask(trial, _smaller(trial, trials) or trial.step)
    if (found := propose_steps(trials, space)) is not None:
        return SteppedAsk(steps=found.steps, batch=found.batch)
    return _settle(trials, space)


def _may_win(trial: Trial, trials: Sequence[Trial], space: StepSpace) -> bool:
    """Whether other batch sizes may make this trial the answer.

    It must beat the best other trial by more than the tolerance; with the engine's default steps, it need only come
    within the tolerance.
    """
    if trial.slips:
        return True
    rival = max((one for one in trials if one is not trial), key=lambda one: one.claim, default=None)
    if rival is None or rival.claim == 0 or space.limits.rate_per_s is not None:
        return True
    tolerance = space.limits.tolerance
    enough = rival.claim * (1 - tolerance if trial.steps.are_default else 1 + tolerance)
    if trial.sure:
        own = [one for one in trials[:1] if one is not trial]
        return min(_reach(trial), *(_reach_against(trial, one) for one in (rival, *own))) > enough
    default = trial.steps.are_default
    more = len(trial.sizes) <= _RETRIES if default else _between(trial, trials) is not None
    # Sizes that are too large give no less.
    return more and max(size.throughput for size in trial.sizes.values()) > enough


def _reach_against(trial: Trial, rival: Trial) -> float:
    """The throughput that the trial may reach, judged by a batch size at which both were measured.

    If it answers no faster there, leaves no more memory and has no room for more sequences in a step, it reaches no
    more than the rival.
    """
    both = [batch for batch in trial.sizes if batch in rival.sizes and rival.sizes[batch].throughput > 0]
    if not both:
        return math.inf
    own, other = trial.sizes[max(both)], rival.sizes[max(both)]
    if rival.ended_by_memory and (own.peak_bytes or 0) < (other.peak_bytes or 0):
        return math.inf
    if max(rival.sizes) >= rival.limits.max_batch < trial.limits.max_batch:
        return math.inf
    for name in trial.limits.latency_ms:
        if own.latency_ms.get(name, 0.0) < other.latency_ms.get(name, 0.0) * (1 - _NOISE):
            return math.inf
    return rival.claim * own.throughput / other.throughput * (1 + _NOISE)


def _smaller(trial: Trial, trials: Sequence[Trial]) -> Ask | None:
    """After sizes that were all too large: one that should do, by what they showed. Without it, the search for a
    batch size begins again with one sequence."""
    again = isinstance(trial.step, Ask) and trial.step.batch in trial.sizes
    if trial.sure or len(trial.sizes) > _RETRIES or again:
        return None
    if not trial.steps.are_default:
        return _between(trial, trials)
    batch = min(trial.sizes) // 2
    return Ask(batch=batch) if batch > 1 else None


def _between(trial: Trial, trials: Sequence[Trial]) -> Ask | None:
    """After sizes that were all too large: one between these and the best by the engine's own steps, as no smaller
    one gives more than that."""
    low = max((size.batch for size in trials[0].sure), default=0)
    batch = (low + min(trial.sizes)) // 2
    return Ask(batch=batch) if low < batch else None


def _reach(trial: Trial) -> float:
    """The highest throughput that the trial may reach, at the largest batch size.

    The time of a step is taken to grow as between the two largest measured sizes; with one size, not at all.
    """
    most = float(trial.limits.max_batch)
    *_, last = trial.sure
    times = [(size.batch, size.batch / size.throughput) for size in trial.sure if size.throughput > 0]
    if most <= last.batch or not times:
        return trial.claim
    batch, took = times[-1]
    grows = max(0.0, (took - times[-2][1]) / (batch - times[-2][0])) if len(times) > 1 else 0.0
    return max(trial.claim, most / (took + grows * (most - batch)))


def _settle(trials: Sequence[Trial], space: StepSpace) -> SteppedAsk | SteppedDecision:
    """The best of all is measured often, then the engine's own steps if they give nearly as much."""
    own = trials[0]
    tolerance = space.limits.tolerance
    # Steps that give no more than the tolerance need not be measured often.
    rivals = [one for one in trials if one is own or one.claim > own.claim * (1 + tolerance)]
    top = max(rivals, key=lambda trial: trial.claim)
    if top.claim == 0:
        return _give_up(trials)
    if isinstance(top.step, Ask):
        return _ask(top, top.step)
    # In an open loop the throughput is the rate, and what keeps up is good enough.
    most = max(trials, key=lambda trial: trial.claim)
    enough = most.claim * (1 - tolerance) if space.limits.rate_per_s is None else 0.0
    for trial in rivals:
        if trial.claim == 0 or trial.claim < enough:
            continue
        if isinstance(trial.step, Ask):
            return _ask(trial, trial.step)
        if own.claim and isinstance(own.step, Ask):
            return _ask(own, own.step)  # what one run said of them does not outweigh five runs of others
        for size in trial.sure:
            if size.runs >= REPEATS and size.throughput >= enough:
                reason = _reason(trial, size.batch, most, trials)
                return SteppedDecision(steps=trial.steps, batch=size.batch, reason=reason)
    raise AssertionError("the best steps are settled, so they are good enough")


def _give_up(trials: Sequence[Trial]) -> SteppedAsk | SteppedDecision:
    """Nothing keeps the bounds: what was nearly good enough is measured again, then the answer is none."""
    for trial in trials:
        hopeless = not trial.steps.are_default and not any(size.fits for size in trial.sizes.values())
        if isinstance(trial.step, Ask) and not hopeless:
            return _ask(trial, trial.step)
    if len(trials) == 1:
        return SteppedDecision(steps=None, batch=None, reason=why_not(trials[0]))
    reason = "; ".join(f"{describe(trial.steps)}: {why_not(trial)}" for trial in trials)
    return SteppedDecision(steps=None, batch=None, reason=reason)


def _reason(trial: Trial, batch: int, top: Trial, trials: Sequence[Trial]) -> str:
    """Why these steps, then why this size with them."""
    own = trial.step
    inner = (
        own.reason
        if isinstance(own, Decision) and own.batch == batch
        else "good enough compared with the best"
    )
    if len(trials) == 1:
        return inner
    if trial is top:
        text = f"{describe(trial.steps)}: the most throughput of {len(trials)} settings"
    else:
        text = (
            f"{describe(trial.steps)}: {trial.claim / top.claim:.0%} of the throughput of {describe(top.steps)}, "
            f"the most of {len(trials)} settings"
        )
    for one in trials:
        if one.claim == 0:
            worst = one.sizes[min(one.sizes)]
            text += f"; {describe(one.steps)}, batch {worst.batch}: {worst.why}"
    return f"{text}; batch {batch}: {inner}"


def _ask(trial: Trial, step: Ask) -> SteppedAsk:
    return SteppedAsk(steps=trial.steps, batch=step.batch, runs=step.runs)
