"""The search for a placement and its batch size. Pure: looks at what was measured and says what to measure next.

Around the search for a batch size. Each placement is tried from the size that is expected to be best there, and only
as long as it can still beat the best that is known; what is answered is then measured as often as its own search
wants. Whatever it answers keeps this: placement and size were measured, `REPEATS` times; peak memory and the upper
confidence limits of latencies keep their bounds; throughput is within the tolerance of the best that keeps them in
any placement; of placements as good as that, the one with the fewest GPUs, then with the most layers on them, then
the one with the engine's own steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tasks.batching.models import Ask, Decision, PlacedAsk, PlacedDecision, PlacedRun, Placement, Space
from tasks.batching.placement.offload import expect, most_layers, propose_layers, room_of
from tasks.batching.placement.split import ask_for_less, propose_split, widest
from tasks.batching.placement.steps import propose_steps
from tasks.batching.placement.trials import Proposal, Trial, limits_of, sort_trials
from tasks.batching.placement.words import describe
from tasks.batching.plan import REPEATS

_NOISE = 0.03
"""Figures of single runs that differ by less are the same."""

_RETRIES = 2
"""Sizes that may turn out too large before the search for a batch size begins with one sequence."""


def next_placed_step(
    history: Sequence[PlacedRun], space: Space, prior: int | None = None
) -> PlacedAsk | PlacedDecision:
    """What to measure next, or the decision. `prior` is a batch size to start from, if one is known."""
    trials = sort_trials(history, space)
    for trial in reversed(trials):
        if isinstance(trial.step, Ask) and trial.grows and _may_win(trial, trials, space):
            return _ask(trial, _smaller(trial, trials, space) or trial.step)
    if (found := _propose(trials, space, prior)) is not None:
        return PlacedAsk(placement=found.placement, batch=found.batch)
    return _settle(trials, space)


def predict_placement(space: Space, batch: int) -> Placement:
    """Where a model is put that is to be served at `batch` and nothing is measured yet: as much of it on the GPUs as
    is predicted to fit, at the least a layer; over as many GPUs as it can be split over."""
    if space.knob is None:
        return Placement()
    return most_layers(space, batch) if space.knob == "offload" else widest(space)


def _propose(trials: Sequence[Trial], space: Space, prior: int | None) -> Proposal | None:
    """Where the model lies first; then, with the best of that, how many tokens to take a step."""
    if space.knob is None:
        most = limits_of(Placement(), space).max_batch
        found = None if trials else Proposal(Placement(), min(prior or 1, most))
    else:
        propose = propose_layers if space.knob == "offload" else propose_split
        found = propose(trials, space, prior)
    return found or propose_steps(trials, space)


def _may_win(trial: Trial, trials: Sequence[Trial], space: Space) -> bool:
    """Whether other sizes may make it the answer: better than the best of the others by more than the tolerance, or
    as good where it is to be preferred."""
    if space.knob == "tensor_parallel" and ask_for_less(trial, trials, space) is not None:
        return False
    if trial.slips:
        return True
    rival = max((one for one in trials if one is not trial), key=lambda one: one.claim, default=None)
    if rival is None or rival.claim == 0 or space.limits.rate_per_s is not None:
        return True
    preferred = _preference(trial) < _preference(rival)
    tolerance = space.limits.tolerance
    enough = rival.claim * (1 - tolerance if preferred else 1 + tolerance)
    if trial.sure:
        own = [one for one in trials if one.placement == trial.own_place and one is not trial]
        return min(_reach(trial, trials, space), *(_beside(trial, one) for one in (rival, *own))) > enough
    told = trial.placement.steps_told
    if space.knob == "offload" and not told:
        return expect(trial, trials, space)[0] > enough
    more = _between(trial, trials) is not None if told else len(trial.sizes) <= _RETRIES
    # Larger sizes than will do give no less.
    return more and max(size.throughput for size in trial.sizes.values()) > enough


def _beside(trial: Trial, rival: Trial) -> float:
    """What it may have, judged by the size that both were measured at: where it is no quicker to answer there, leaves
    no more memory, and has room for no more sequences in a step, it reaches no further than the rival does."""
    both = [batch for batch in trial.sizes if batch in rival.sizes and rival.sizes[batch].throughput > 0]
    if trial.placement.gpu_layers != rival.placement.gpu_layers or not both:
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


def _smaller(trial: Trial, trials: Sequence[Trial], space: Space) -> Ask | None:
    """After sizes that were all too large: one that should do, by what they showed. Without it, the search for a
    batch size begins again with one sequence."""
    smallest = min(trial.sizes)
    again = isinstance(trial.step, Ask) and trial.step.batch in trial.sizes
    if trial.sure or len(trial.sizes) > _RETRIES or again:
        return None
    if trial.placement.steps_told:
        return _between(trial, trials)
    offload = space.knob == "offload"
    batch = min(expect(trial, trials, space)[1], smallest * 9 // 10) if offload else smallest // 2
    return Ask(batch=batch) if batch > 1 else None


def _between(trial: Trial, trials: Sequence[Trial]) -> Ask | None:
    """After sizes that were all too large: one between these and the best by the engine's own steps, as no smaller
    one gives more than that."""
    own = next(one for one in trials if one.placement == trial.own_place)
    low = max((size.batch for size in own.sure), default=0)
    batch = (low + min(trial.sizes)) // 2
    return Ask(batch=batch) if low < batch else None


def _reach(trial: Trial, trials: Sequence[Trial], space: Space) -> float:
    """The most throughput that it may have, at the largest size for which there is memory.

    The time of a step grows as it did between the two largest sizes; where there is one, not at all.
    """
    most = float(trial.limits.max_batch)
    if space.knob == "offload" and not trial.placement.steps_told:
        most = min(most, float(room_of(trial, trials, space)))
    *_, last = trial.sure
    times = [(size.batch, size.batch / size.throughput) for size in trial.sure if size.throughput > 0]
    if most <= last.batch or not times:
        return trial.claim
    batch, took = times[-1]
    grows = max(0.0, (took - times[-2][1]) / (batch - times[-2][0])) if len(times) > 1 else 0.0
    return max(trial.claim, most / (took + grows * (most - batch)))


def _settle(trials: Sequence[Trial], space: Space) -> PlacedAsk | PlacedDecision:
    """The best of all is measured often, then the first by preference that is good enough beside it."""
    rivals = [trial for trial in trials if not _as_good_untold(trial, trials, space)]
    top = max(rivals, key=lambda trial: trial.claim, default=None)
    if top is None or top.claim == 0:
        return _give_up(trials, space)
    if isinstance(top.step, Ask):
        return _ask(top, top.step)
    # In an open loop the throughput is the rate, and what keeps up is good enough.
    most = max(trials, key=lambda trial: trial.claim)
    enough = most.claim * (1 - space.limits.tolerance) if space.limits.rate_per_s is None else 0.0
    for trial in sorted(rivals, key=_preference):
        if trial.claim == 0 or trial.claim < enough:
            continue
        if isinstance(trial.step, Ask):
            return _ask(trial, trial.step)
        own = next(one for one in trials if one.placement == trial.own_place)
        if own.claim and isinstance(
            own.step, Ask
        ):  # what one run said of them is no match for five of others
            return _ask(own, own.step)
        for size in trial.sure:
            if size.runs >= REPEATS and size.throughput >= enough:
                return PlacedDecision(
                    placement=trial.placement,
                    batch=size.batch,
                    reason=_reason(trial, size.batch, most, trials, space),
                )
    raise AssertionError("the best placement is settled, so it is good enough")


def _as_good_untold(trial: Trial, trials: Sequence[Trial], space: Space) -> bool:
    """Whether the engine's own steps give nearly as much in the same place: then it need not be measured often."""
    own = next(one for one in trials if one.placement == trial.own_place)
    return trial.placement.steps_told and trial.claim <= own.claim * (1 + space.limits.tolerance)


def _preference(trial: Trial) -> tuple[int, int, bool]:
    placement = trial.placement
    return placement.gpus, -placement.gpu_layers, placement.steps_told


def _give_up(trials: Sequence[Trial], space: Space) -> PlacedAsk | PlacedDecision:
    """Nothing keeps the bounds: what was nearly good enough is measured again, then the answer is none."""
    for trial in trials:
        hopeless = trial.placement.steps_told and not any(size.fits for size in trial.sizes.values())
        if isinstance(trial.step, Ask) and not hopeless:
            return _ask(trial, trial.step)
    alone = len(trials) == 1 and space.knob is None
    reasons = [
        _why_not(trial) if alone else f"{describe(trial.placement, space)}: {_why_not(trial)}"
        for trial in trials
        if isinstance(trial.step, Decision) or trial.placement.steps_told
    ]
    return PlacedDecision(placement=None, batch=None, reason="; ".join(reasons) or _why_nowhere(space))


def _why_not(trial: Trial) -> str:
    if isinstance(trial.step, Decision):
        return trial.step.reason
    smallest = trial.sizes[min(trial.sizes)]
    return f"batch {smallest.batch}: {smallest.why}"


def _why_nowhere(space: Space) -> str:
    footprint, devices = space.footprint, space.devices
    weights = footprint.layers * footprint.layer_bytes + footprint.output_bytes
    caches = footprint.layers * footprint.kv_bytes
    host = f" and {_gb(devices.host_bytes)} of the host" if space.knob == "offload" else ""
    return (
        f"it is predicted to fit in no way: {_gb(weights)} of weights and {_gb(caches)} for one sequence, in "
        f"{_gb(sum(devices.gpu_bytes))} of the GPUs{host}, of which {space.memory_fraction:.0%} may be used"
    )


def _gb(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.2f} GB"


def _reason(trial: Trial, batch: int, top: Trial, trials: Sequence[Trial], space: Space) -> str:
    """Why this placement, then why this size in it."""
    where = describe(trial.placement, space)
    others = [one for one in trials if one is not trial]
    own = trial.step
    inner = own.reason if isinstance(own, Decision) and own.batch == batch else "good enough beside the best"
    if not others and space.knob is None:
        return inner
    several = f"{len(trials)} {'settings' if space.knob is None else 'placements'}"
    if not others:
        text = f"{where}: no other was predicted to give more"
    elif trial is top:
        text = f"{where}: the most throughput of {several}"
    else:
        text = (
            f"{where}: {trial.claim / top.claim:.0%} of the throughput of {describe(top.placement, space)}, the most "
            f"of {several}"
        )
    for one in others:
        if one.claim == 0:
            worst = one.sizes[min(one.sizes)]
            text += f"; {describe(one.placement, space)}, batch {worst.batch}: {worst.why}"
    return f"{text}; batch {batch}: {inner}"


def _ask(trial: Trial, step: Ask) -> PlacedAsk:
    return PlacedAsk(placement=trial.placement, batch=step.batch, runs=step.runs)
