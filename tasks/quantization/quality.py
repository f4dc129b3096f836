"""How a candidate compares with the baseline, and which of it is too much. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping

from tasks.core.spec_kinds import CandidateFormat
from tasks.quantization.intervals import mean_interval, share_lost, transformed
from tasks.quantization.models import Estimate, Quality, Score, Trial, WeightError

LIKELIEST = 32
"""Tokens whose probabilities the divergence is computed from; all others count as one."""

ROUNDING = {
    CandidateFormat.F32: 0.01,
    CandidateFormat.F16: 0.01,
    CandidateFormat.BF16: 0.01,
    CandidateFormat.Q8_0: 0.03,
    CandidateFormat.Q6_K: 0.1,
    CandidateFormat.Q5_K_M: 0.2,
    CandidateFormat.Q5_1: 0.2,
    CandidateFormat.Q5_0: 0.2,
    CandidateFormat.Q4_K_M: 0.35,
    CandidateFormat.Q4_1: 0.35,
    CandidateFormat.Q4_0: 0.35,
    CandidateFormat.W8A8: 0.08,
    CandidateFormat.W4A16: 0.8,
    CandidateFormat.FP8: 0.1,
    CandidateFormat.AS_IS: 0.0,
}
"""Most that rounding changes a tensor, in its own deviations: four times what it does to normally distributed values,
twice what it does to heavy tails or columns of outliers (measured). GPTQ moves weights on purpose, to make up for the
rounding of others: what it leaves of a matrix with columns of outliers differs by 0.42 (measured)."""

_LEAST = 1e-6
"""Least probability of all other tokens together: engines answer in 32-bit floats."""


_MOST = 25.0
"""Losses beyond exp(25) count as equal."""


def compare(trial: Trial, baseline: Trial) -> Quality | None:
    """Quality on the tokens and task items that both did; None if a probability is zero or not a number."""
    pairs = list(zip(trial.scores, baseline.scores, strict=True))
    perplexity = _exp(-statistics.fmean(ours.logprob for ours, _ in pairs))
    if not math.isfinite(perplexity):
        return None
    divergences, named = zip(*(_divergence(ours, theirs) for ours, theirs in pairs), strict=True)
    coverage = statistics.fmean(named)
    if not math.isfinite(statistics.fmean(divergences) / coverage):
        return None
    tasks = share_lost(trial.answers, baseline.answers) if any(baseline.answers) else None
    if trial is baseline and tasks:
        tasks = Estimate(value=0, low=0, high=0)
    return Quality(
        perplexity=perplexity,
        loss=transformed(
            mean_interval([theirs.logprob - ours.logprob for ours, theirs in pairs]),
            lambda value: math.exp(min(value, _MOST)) - 1,
        ),
        divergence=transformed(mean_interval(divergences), lambda value: value / coverage),
        agreement=mean_interval([float(ours.top == theirs.top) for ours, theirs in pairs]),
        choice_loss=mean_interval([_choice_loss(ours, theirs) for ours, theirs in pairs]),
        coverage=coverage,
        tokens=len(pairs),
        right_answers=statistics.fmean(trial.answers) if tasks else None,
        task_loss=tasks,
    )


def _divergence(ours: Score, theirs: Score) -> tuple[float, float]:
    """KL divergence of ours from theirs, nats, and the probability of the tokens it is computed from."""
    own = dict(zip(ours.ids, ours.logprobs, strict=True))
    own[ours.token] = ours.logprob
    found = dict(zip(theirs.ids, theirs.logprobs, strict=True))
    found[theirs.token] = theirs.logprob
    total, right, wrong = 0.0, 0.0, 0.0
    for token, logprob in found.items():
        if token in own:
            probability = math.exp(logprob)
            total += probability * (logprob - own[token])
            right += probability
            wrong += math.exp(own[token])
    rest, other = max(1 - right, _LEAST), max(1 - wrong, _LEAST)
    return total + rest * math.log(rest / other), right


def _choice_loss(ours: Score, theirs: Score) -> float:
    """How much less likely the baseline thinks this candidate's choice than its own, from 0 (the same) to 1."""
    if ours.top == theirs.top:
        return 0.0
    for token, logprob in zip(theirs.ids, theirs.logprobs, strict=True):
        if token == ours.top:
            return 1 - math.exp(logprob - theirs.logprobs[0])
    return 1.0


def losses(quality: Quality) -> Iterator[tuple[str, Estimate]]:
    """Each measure as the share of the baseline's quality that is lost, without the tasks'.

    A divergence of d nats is a loss of 1 - exp(-d): what a text that the baseline wrote loses of its probability,
    token by token.
    """
    yield "perplexity", quality.loss
    yield "divergence", transformed(quality.divergence, lambda value: 1 - math.exp(min(-value, _MOST)))
    yield "choices", quality.choice_loss


def kept(quality: Quality) -> Estimate:
    """The share of the baseline's quality that is left, from 0 to 1, by the measure that says least."""
    worst = [loss for _, loss in losses(quality)] + ([quality.task_loss] if quality.task_loss else [])
    return Estimate(
        value=_share(max(loss.value for loss in worst)),
        low=_share(max(loss.high for loss in worst)),
        high=_share(max(loss.low for loss in worst)),
    )


def _share(loss: float) -> float:
    return min(1.0, max(0.0, 1 - loss))


def reject(quality: Quality, tolerance: float, task_tolerance: float) -> str | None:
    """Why a candidate misses the floor: the worse end of each loss's interval must be within its tolerance."""
    bounds = [(name, loss, tolerance) for name, loss in losses(quality)]
    if quality.task_loss is not None:
        bounds.append(("right answers", quality.task_loss, task_tolerance))
    broken = [(name, loss, bound) for name, loss, bound in bounds if loss.high > bound]
    if not broken:
        return None
    found = ", ".join(f"{loss.value:.2%} by {name} (up to {loss.high:.2%})" for name, loss, _ in broken)
    accepted = f"{max(bound for _, _, bound in broken):.2%} accepted"
    if any(loss.value > bound for _, loss, bound in broken):
        return f"loses {found}; {accepted}"
    return f"may lose too much: {found}; {accepted}, and {quality.tokens} tokens cannot tell"


def worst_weight(errors: Mapping[str, float | None]) -> WeightError:
    """The tensor that differs most; one that cannot be compared differs more than any."""
    tensor = max(errors, key=lambda name: math.inf if (error := errors[name]) is None else error)
    return WeightError(tensor=tensor, error=errors[tensor])


def reject_weights(worst: WeightError, form: CandidateFormat, baseline: CandidateFormat) -> str | None:
    """Why a candidate is damaged rather than rounded.

    What a text does not use it cannot show: a layer that hardly takes part may be noise, and no token changes.
    """
    if worst.error is None:
        return f"damaged: its tensor {worst.tensor} cannot be compared with that of {baseline}"
    if worst.error <= (bound := ROUNDING[form] + ROUNDING[baseline]):
        return None
    return (
        f"damaged: its tensor {worst.tensor} differs from that of {baseline} by {worst.error:.0%} of its own "
        f"deviation, rounding makes {bound:.0%} at most"
    )


def _exp(value: float) -> float:
    if math.isnan(value):
        return math.inf
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
