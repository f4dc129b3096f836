"""Which candidate to serve: the fastest whose measured quality is within the user's tolerance. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from tasks.core.errors import EngineError, SpecError
from tasks.core.spec import CandidateFormat
from tasks.core.verdicts import ChoiceVerdict
from tasks.quantization.models import Candidate, Measured, Quality, QuantizationResult, Score, Trial

MIN_TOKENS = 64
"""Fewer scored tokens say nothing about quality."""

SAME_SPEED = 0.03
"""Speeds that differ by less are the same, however steady they look."""

MOST_NOISE = 0.25
"""Speeds that differ by more are not the same, however unsteady they look."""

_WINDOW_TOKENS = 1024
_SLOTS = 4
_BYTES_PER_TOKEN = 16


def text_bytes(tokens: int) -> int:
    """Bytes of a text that are enough for so many tokens."""
    return tokens * _BYTES_PER_TOKEN


def window_tokens(context: int) -> int:
    """Tokens scored in one request: the user's context, as long as that needs no great cache."""
    return min(context, _WINDOW_TOKENS)


def window_slots(tokens: int, window: int) -> int:
    """Windows scored at once."""
    return max(1, min(_SLOTS, math.ceil(tokens / window)))


def compare(scores: Sequence[Score], baseline: Sequence[Score]) -> Quality:
    """Quality on the tokens that both scored. Infinite where a probability is none or zero."""
    losses = [theirs.logprob - ours.logprob for ours, theirs in zip(scores, baseline, strict=True)]
    mean = statistics.fmean(losses)
    error = statistics.stdev(losses) / math.sqrt(len(losses)) if math.isfinite(mean) else math.inf
    ratio = _exp(mean)
    return Quality(
        perplexity=_exp(-statistics.fmean(score.logprob for score in scores)),
        loss=ratio - 1,
        loss_error=ratio * error,
        agreement=statistics.fmean(
            ours.top == theirs.top for ours, theirs in zip(scores, baseline, strict=True)
        ),
        tokens=len(scores),
    )


def _exp(value: float) -> float:
    if math.isnan(value):
        return math.inf
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def check_baseline(form: CandidateFormat, trial: Trial, *, compared: bool) -> None:
    """Raise when there is nothing to compare with: too little text, or a model that answers no numbers."""
    if not compared:
        return
    if len(trial.scores) < MIN_TOKENS:
        raise SpecError(
            f"only {len(trial.scores)} tokens of tuning.quality_text can be scored, {MIN_TOKENS} are needed",
            fix="give a longer text",
        )
    if not math.isfinite(compare(trial.scores, trial.scores).perplexity):
        raise EngineError(
            f"the baseline {form} answers no usable probabilities",
            fix="check the model's weights at their source",
        )


def judge(candidate: Candidate, trial: Trial, baseline: Trial, tolerance: float) -> Measured:
    """One candidate's figures, rejected where its loss of quality is beyond `tolerance`."""
    speed = statistics.median(trial.tokens_per_s)
    quality = compare(trial.scores, baseline.scores) if baseline.scores else None
    return Measured(
        format=candidate.format,
        candidate=candidate,
        quality=quality if quality and math.isfinite(quality.perplexity) else None,
        tokens_per_s=speed,
        spread=(max(trial.tokens_per_s) - min(trial.tokens_per_s)) / 2 / speed,
        rejected=_reject(quality, tolerance),
    )


def _reject(quality: Quality | None, tolerance: float) -> str | None:
    if quality is None:
        return None
    if not math.isfinite(quality.perplexity):
        return "its probabilities are no numbers"
    if quality.loss > tolerance:
        return f"loses {quality.loss:.2%} of quality, {tolerance:.2%} are accepted"
    return None


def choose(measured: Iterable[Measured], tolerance: float) -> QuantizationResult:
    """The fastest that is not rejected; of those as fast as it within their noise, the smallest."""
    rows = tuple(measured)
    fit = [row for row in rows if row.rejected is None and row.tokens_per_s is not None]
    if not fit:
        return QuantizationResult(
            verdict=ChoiceVerdict.NONE,
            reason="; ".join(f"{row.format}: {row.rejected}" for row in rows),
            baseline=rows[0].format,
            tolerance=tolerance,
            chosen=None,
            measured=rows,
        )
    fastest = max(fit, key=_speed)
    level = [row for row in fit if _as_fast(row, fastest)]
    chosen = min(level, key=lambda row: (_size(row), -_speed(row)))
    return QuantizationResult(
        verdict=ChoiceVerdict.CHOSEN,
        reason=_reason(chosen, fastest, len(fit)),
        baseline=rows[0].format,
        tolerance=tolerance,
        chosen=chosen,
        measured=tuple(_passed_over(row, chosen, level) for row in rows),
    )


def _speed(row: Measured) -> float:
    return row.tokens_per_s or 0.0


def _size(row: Measured) -> int:
    return row.candidate.size_bytes if row.candidate else 0


def _as_fast(row: Measured, fastest: Measured) -> bool:
    noise = min(MOST_NOISE, max(SAME_SPEED, row.spread, fastest.spread))
    return _speed(row) >= _speed(fastest) * (1 - noise)


def _reason(chosen: Measured, fastest: Measured, fit: int) -> str:
    if fit == 1:
        return "the only one within the tolerance" if chosen.quality else "the only one asked for"
    if chosen.format == fastest.format:
        return f"the fastest of {fit} within the tolerance"
    return f"the smallest of those as fast as {fastest.format}, within the noise of the measurement"


def _passed_over(row: Measured, chosen: Measured, level: Sequence[Measured]) -> Measured:
    if row.rejected or row.format == chosen.format:
        return row
    if row in level:
        why = f"no faster than {chosen.format} within the noise, and larger"
    else:
        why = f"{1 - _speed(row) / _speed(chosen):.0%} slower than {chosen.format}"
    return row.model_copy(update={"passed_over": why})
