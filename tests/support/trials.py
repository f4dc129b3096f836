"""Trials of candidates as a bench would answer them, for judgements that need no engine."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from pathlib import Path

from random_model import source_of

from tasks.core.settings import Settings
from tasks.core.spec_kinds import CandidateFormat
from tasks.quantization.apply import CandidateBench, measure_candidates
from tasks.quantization.models import Candidate, QuantizationRequest, QuantizationResult, Score, Trial


def score(token: int, logprob: float, likeliest: dict[int, float] | None = None) -> Score:
    """A token's score; unless given, the model holds token 1 likeliest, at one half."""
    found = likeliest or {1: math.log(0.5), token: logprob}
    return Score(token, logprob, array("i", found), array("f", found.values()))


def scores(*logprobs: float) -> tuple[Score, ...]:
    """Scores of the tokens 100, 101, …"""
    return tuple(score(100 + number, value) for number, value in enumerate(logprobs))


def trial(mean: float, *speeds: float, count: int = 128, answers: Sequence[bool] = ()) -> Trial:
    """Log-probabilities around `mean`, alike in each segment."""
    wobble = (mean + 0.5 * (-1) ** number for number in range(count))
    return Trial(scores=scores(*wobble), tokens_per_s=speeds or (100.0,), answers=tuple(answers))


def candidate(form: CandidateFormat, size: int) -> Candidate:
    return Candidate(format=form, path=Path(f"/c/{form}"), digest="sha256:x", size_bytes=size)


def request(*formats: CandidateFormat, tolerance: float = 0.02, **more: object) -> QuantizationRequest:
    values = {
        "model_dir": Path("/m"),
        "model_digest": "sha256:m",
        "formats": formats or (CandidateFormat.F16, CandidateFormat.Q8_0, CandidateFormat.Q4_0),
        "text": "text",
        "tokens": 128,
        "context": 256,
        "tolerance": tolerance,
        "task_tolerance": tolerance,
        **more,
    }
    return QuantizationRequest.model_validate(values)


def measure(asked: QuantizationRequest, bench: CandidateBench, settings: Settings) -> QuantizationResult:
    """The stage's work, on the model that is asked about."""
    return measure_candidates(asked, source_of(asked.model_dir), bench, settings)
