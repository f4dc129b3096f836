"""Which candidate to serve: the first in the order of the user's policy that meets the quality floor. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from tasks.core.errors import EngineError, SpecError
from tasks.core.model_task import Task
from tasks.core.spec_kinds import CandidateFormat, QuantizationPolicy
from tasks.core.verdicts import ChoiceVerdict
from tasks.engines.failures import Failure, FailureKind
from tasks.quantization.intervals import share_lost
from tasks.quantization.models import (
    BaselineModel,
    Candidate,
    Estimate,
    Measured,
    QuantizationRequest,
    QuantizationResult,
    Trial,
    TrialPlan,
)
from tasks.quantization.quality import compare, kept, reject
from tasks.quantization.similarity import (
    DOCUMENTS,
    LEAST_QUERIES,
    LEAST_TEXTS,
    compare_rows,
    passages,
    questions,
    reject_similarity,
)

MIN_TOKENS = 64
"""Fewer scored tokens say nothing about quality."""

SAME_SPEED = 0.03
"""Speeds that differ by less are the same, however steady they look."""

MOST_NOISE = 0.25
"""Speeds that differ by more are not the same, however unsteady they look."""

SAME_SIZE = 0.01
"""Sizes that differ by less are the same."""

STRICT = 0.001
"""The loss up to which the policy `accuracy` takes a candidate for as good as the baseline."""

MARGIN_TOKENS = 8
"""Tokens that a sequence contains in addition to the scored text: what the model puts before it, and an answer."""

_WINDOW_TOKENS = 1024
_SLOTS = 4
_BYTES_PER_TOKEN = 16
_LONG_LINE = 40
_MOST_SHARED = 0.05
_AS_FINE = 1.02
"""Formats with equally many bits differ in size by at most this factor, because of their scales."""


def text_bytes(tokens: int) -> int:
    """Bytes of a text that are enough for so many tokens."""
    return tokens * _BYTES_PER_TOKEN


def check_held_out(calibration: str, held_out: str) -> None:
    """Raise `SpecError` if the text on which quality is measured is also used for calibration.

    Only lines that are too long to be equal by chance count.
    """
    lines = {line.strip() for line in held_out.splitlines() if len(line.strip()) >= _LONG_LINE}
    seen = lines & {line.strip() for line in calibration.splitlines()}
    if len(seen) > _MOST_SHARED * len(lines) or held_out.strip() in calibration:
        raise SpecError(
            f"tuning.quality_text is not held out: {len(seen)} of its {len(lines)} long lines are also in "
            "tuning.calibration_text",
            fix="calibrate on another text, or on another part of it",
        )


def window_tokens(context: int) -> int:
    """Tokens scored in one request: what fits the user's context, as long as that needs no great cache."""
    return min(context - MARGIN_TOKENS, _WINDOW_TOKENS)


def window_slots(tokens: int, window: int) -> int:
    """Windows scored at once."""
    return max(1, min(_SLOTS, math.ceil(tokens / window)))


def trial_plan(request: QuantizationRequest) -> TrialPlan:
    """What each candidate is measured on."""
    window = window_tokens(request.context)
    if request.task is not Task.GENERATE:
        texts = passages(request.text or "", tokens=request.tokens, window=window)
        ranks = request.task is Task.RERANK
        return TrialPlan(
            tokens=request.tokens,
            window=window,
            texts=() if ranks else texts,
            questions=questions(texts, window=window) if ranks else (),
        )
    return TrialPlan(
        text=request.text,
        tokens=request.tokens,
        window=window,
        slots=window_slots(request.tokens, window) if request.text else 1,
        task_items=request.task_items,
    )


def measured_tokens(request: QuantizationRequest) -> int:
    """Tokens whose keys and values the engine keeps at once, while it is measured or serves one request."""
    trial = trial_plan(request)
    return max(request.context, trial.slots * (trial.window + MARGIN_TOKENS))


def refuse_memory(needed: int, limit: int | None) -> str | None:
    """Why a candidate is not made, if it needs more memory than there may be. Bytes; None if it fits."""
    if limit is None or needed <= limit:
        return None
    return f"not made: it would need {_gb(needed)} of memory at the least, {_gb(limit)} may be used"


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def check_order(formats: Sequence[CandidateFormat], sizes: Mapping[CandidateFormat, int]) -> None:
    """Raise `SpecError` if the baseline is coarser than what is compared with it: a loss could not show."""
    baseline = formats[0]
    finer = [form for form in formats if sizes[form] > sizes[baseline] * _AS_FINE]
    if finer:
        raise SpecError(
            f"the baseline {baseline} is less exact than {', '.join(finer)}, but quality is measured against it",
            fix=f"put {max(finer, key=lambda form: sizes[form])} first in tuning.candidates",
        )


def of_baseline(request: QuantizationRequest, baseline: BaselineModel) -> QuantizationRequest:
    """The request for the baseline's own candidate: its files, as they are."""
    own = {"model_dir": baseline.model_dir, "model_digest": baseline.model_digest, "as_is": baseline.files}
    return request.model_copy(update={**own, "stored_as": None, "baseline": None})


def check_same_tokens(trial: Trial, baseline: Trial) -> None:
    """Raise `SpecError` if the baseline splits the text into other tokens: what is compared must be one model."""
    if [score.token for score in trial.scores] != [score.token for score in baseline.scores]:
        raise SpecError(
            "tuning.baseline splits the text into other tokens than the model: it is another model",
            fix="give the model that was quantized, or leave tuning.baseline out",
        )


def check_baseline(request: QuantizationRequest, trial: Trial) -> None:
    """Raise when there is nothing to compare with: too little text, too few tasks that the baseline can do, or a
    model that answers no numbers."""
    if request.text is None:
        return
    if request.task is not Task.GENERATE:
        if compare_rows(request.task, trial.rows, trial.rows) is None:
            raise EngineError(
                "the baseline did not return numbers", fix="check the model's weights at their source"
            )
        return
    if len(trial.scores) < MIN_TOKENS:
        raise SpecError(
            f"only {len(trial.scores)} tokens of tuning.quality_text can be scored, but {MIN_TOKENS} are needed",
            fix="give a longer text",
        )
    if compare(trial, trial) is None:
        raise EngineError(
            f"the baseline {request.formats[0]} did not return usable probabilities",
            fix="check the model's weights at their source",
        )
    if trial.answers and len(request.formats) > 1:
        _check_answers(trial.answers, request.task_tolerance)


def check_lines(request: QuantizationRequest) -> None:
    """Raise `SpecError` for a text with too few lines to compare embeddings or scores by."""
    if request.text is None or request.task is Task.GENERATE:
        return
    trial, ranks = trial_plan(request), request.task is Task.RERANK
    if (len(trial.questions) < LEAST_QUERIES) if ranks else (len(trial.texts) < LEAST_TEXTS):
        raise SpecError(
            f"tuning.quality_text has too few lines to compare {'scores' if ranks else 'embeddings'} by",
            fix=f"give a text of {LEAST_QUERIES * DOCUMENTS if ranks else LEAST_TEXTS} or more different lines, "
            "and raise tuning.quality_tokens if it has them",
        )


def _check_answers(answers: Sequence[bool], tolerance: float) -> None:
    if not any(answers):
        raise SpecError(
            f"the baseline solves none of the {len(answers)} tasks in tuning.task_set",
            fix="give tasks that the model can do",
        )
    least = share_lost(answers, answers).high
    if least > tolerance:
        raise SpecError(
            f"tuning.task_set has {len(answers)} tasks, of which the baseline solves {sum(answers)}: too few "
            f"to show that a candidate loses at most {tolerance:.2%}",
            fix=f"give more tasks, or set objectives.task_tolerance to {math.ceil(least * 1000) / 1000:g} or more",
        )


def judge(candidate: Candidate, trial: Trial, baseline: Trial, request: QuantizationRequest) -> Measured:
    """One candidate's figures, rejected if a loss of quality may be beyond what is accepted."""
    speed = statistics.median(trial.tokens_per_s)
    quality = compare(trial, baseline) if baseline.scores else None
    rejected, failure = None, None
    if baseline.scores and trial is not baseline:
        if quality is None:
            failure = Failure(kind=FailureKind.GARBAGE, what="its probabilities are not numbers")
            rejected = failure.line
        else:
            rejected = reject(quality, request.tolerance, request.task_tolerance)
    similarity = compare_rows(request.task, trial.rows, baseline.rows) if baseline.rows else None
    if baseline.rows and trial is not baseline:
        if similarity is None:
            failure = Failure(kind=FailureKind.GARBAGE, what="its answers are not numbers")
            rejected = failure.line
        else:
            rejected = reject_similarity(similarity, request.tolerance)
    return Measured(
        format=candidate.format,
        candidate=candidate,
        quality=quality,
        similarity=similarity,
        tokens_per_s=speed,
        spread=(max(trial.tokens_per_s) - min(trial.tokens_per_s)) / 2 / speed,
        rejected=rejected,
        failure=failure,
    )


def choose(measured: Iterable[Measured], request: QuantizationRequest) -> QuantizationResult:
    """The decision tree: the quality floor first, then the policy's branch.

    - `latency`: the fastest; of those as fast as it within their noise, the smallest.
    - `resources`: the smallest; of those as small, the fastest.
    - `accuracy`: only what loses no more than `STRICT` of the baseline's quality, at the worse end of its interval;
      of that the fastest, then the smallest.
    """
    rows = tuple(measured)
    fit = _eligible(rows)
    chosen, why, others = _BRANCHES[request.policy](fit, rows[0].format) if fit else (None, None, {})
    if chosen and chosen.format is CandidateFormat.AS_IS:
        why = "the model is served as it comes" + (", within the tolerance" if request.baseline else "")
    if request.baseline:
        others = {rows[0].format: "the baseline, which is compared with and not served"}
    return QuantizationResult(
        verdict=ChoiceVerdict.CHOSEN if chosen else ChoiceVerdict.NONE,
        reason=why or "; ".join(f"{row.format}: {row.rejected}" for row in rows),
        policy=request.policy,
        baseline=rows[0].format,
        tolerance=request.tolerance,
        task_tolerance=request.task_tolerance,
        scored_by=request.scored_by,
        task=request.task,
        chosen=chosen,
        measured=tuple(row.model_copy(update={"passed_over": others.get(row.format)}) for row in rows),
    )


_Choice = tuple[Measured, str, dict[CandidateFormat, str]]
"""The chosen row, the reason, and why each of the others was passed over."""


def _eligible(rows: Iterable[Measured]) -> list[Measured]:
    return [
        row for row in rows if row.rejected is None and row.tokens_per_s is not None and not row.compared_only
    ]


def _latency(fit: Sequence[Measured], _: CandidateFormat) -> _Choice:
    fastest = max(fit, key=_speed)
    level = [row for row in fit if _as_fast(row, fastest)]
    chosen = min(level, key=lambda row: (_size(row), -_speed(row)))
    reason = f"the fastest of {len(fit)} within the tolerance"
    if len(fit) == 1:
        reason = "the only one within the tolerance" if kept_by(chosen) else "the only one asked for"
    elif chosen.format != fastest.format:
        reason = f"the smallest of those as fast as {fastest.format}, within the noise of the measurement"
    return chosen, reason, {row.format: _too_slow(row, chosen, level) for row in fit if row is not chosen}


def _too_slow(row: Measured, chosen: Measured, level: Sequence[Measured]) -> str:
    if row in level:
        return f"no faster than {chosen.format} within the noise, and larger"
    return f"{1 - _speed(row) / _speed(chosen):.0%} slower than {chosen.format}"


def _resources(fit: Sequence[Measured], _: CandidateFormat) -> _Choice:
    least = min(_size(row) for row in fit)
    level = [row for row in fit if _size(row) <= least * (1 + SAME_SIZE)]
    chosen = max(level, key=_speed)
    others = {}
    for row in fit:
        if row in level:
            others[row.format] = f"as small as {chosen.format}, and slower"
        else:
            others[row.format] = f"{_size(row) / _size(chosen) - 1:.0%} larger than {chosen.format}"
    others.pop(chosen.format)
    return chosen, f"the smallest of {len(fit)} within the tolerance", others


def _accuracy(fit: Sequence[Measured], baseline: CandidateFormat) -> _Choice:
    lossless = [row for row in fit if row.format == baseline or _loss(row) <= STRICT] or list(fit[:1])
    chosen, _, others = _latency(lossless, baseline)
    for row in fit:
        if row not in lossless:
            others[row.format] = f"may lose {_loss(row):.2%} of quality, and accuracy comes first"
    if len(lossless) == 1:
        return chosen, f"no other is shown to keep {1 - STRICT:.1%} of its quality", others
    return chosen, f"of {len(lossless)} shown to keep {1 - STRICT:.1%} of the quality, the fastest", others


_BRANCHES: dict[QuantizationPolicy, Callable[[Sequence[Measured], CandidateFormat], _Choice]] = {
    QuantizationPolicy.LATENCY: _latency,
    QuantizationPolicy.RESOURCES: _resources,
    QuantizationPolicy.ACCURACY: _accuracy,
}


def choices(rows: Sequence[Measured]) -> dict[QuantizationPolicy, CandidateFormat]:
    """What each policy would choose of these figures; empty if nothing is within the tolerance."""
    fit = _eligible(rows)
    if not fit:
        return {}
    return {policy: branch(fit, rows[0].format)[0].format for policy, branch in _BRANCHES.items()}


def front(rows: Sequence[Measured]) -> frozenset[CandidateFormat]:
    """Formats that none of the others equals or beats in quality kept, speed and size at once."""
    placed = {
        row.format: (found.value, _speed(row), -_size(row))
        for row in rows
        if (found := kept_by(row)) and row.rejected is None
    }
    return frozenset(
        form
        for form, here in placed.items()
        if not any(
            there != here and all(ours >= theirs for ours, theirs in zip(there, here, strict=True))
            for there in placed.values()
        )
    )


def kept_by(row: Measured) -> Estimate | None:
    """The share of the baseline's quality that a candidate keeps; None if it was not compared."""
    if row.similarity is not None:
        return row.similarity.kept
    return kept(row.quality) if row.quality else None


def _loss(row: Measured) -> float:
    found = kept_by(row)
    return 1 - found.low if found else 0.0


def _speed(row: Measured) -> float:
    return row.tokens_per_s or 0.0


def _size(row: Measured) -> int:
    return row.candidate.size_bytes if row.candidate else 0


def _as_fast(row: Measured, fastest: Measured) -> bool:
    noise = min(MOST_NOISE, max(SAME_SPEED, row.spread, fastest.spread))
    return _speed(row) >= _speed(fastest) * (1 - noise)
