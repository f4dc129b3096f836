"""What the quantization stage is asked, what it measures and what it answers."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from tasks.core.result import StageResult
from tasks.core.spec import CandidateFormat
from tasks.core.verdicts import ChoiceVerdict


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class QuantizationRequest(_Frozen):
    """Which candidates of which model to measure. `formats[0]` is the baseline.

    `text` is held-out text, needed to compare several formats; `tolerance` the largest accepted loss of quality.
    """

    model_dir: Path
    model_digest: str
    formats: tuple[CandidateFormat, ...] = Field(min_length=1)
    text: str | None
    tokens: int = Field(ge=64)
    context: int = Field(ge=64)
    tolerance: float = Field(ge=0)


class Candidate(_Frozen):
    """The model in one format, as a file. `digest` is of its bytes."""

    format: CandidateFormat
    path: Path
    digest: str
    size_bytes: int = Field(gt=0)


class Score(NamedTuple):
    """One token of the text: its natural log-probability, and the token the model held likeliest."""

    token: int
    logprob: float
    top: int


class Trial(_Frozen):
    """What one served candidate did: scores of the text's tokens, and tokens/s of each single-stream run."""

    scores: tuple[Score, ...] = ()
    tokens_per_s: tuple[float, ...] = Field(min_length=1)


class Quality(_Frozen):
    """A candidate's perplexity, and how it compares with the baseline on the same tokens.

    `loss` is perplexity over the baseline's, minus 1: negative where it is better. `loss_error` is its standard
    error; `agreement` the share of tokens on which both hold the same one likeliest.
    """

    perplexity: float
    loss: float
    loss_error: float
    agreement: float
    tokens: int


class Measured(_Frozen):
    """One format's figures. `rejected` says why it cannot be chosen; `passed_over` why it was not."""

    format: CandidateFormat
    candidate: Candidate | None = None
    quality: Quality | None = None
    tokens_per_s: float | None = None
    spread: float = 0.0
    rejected: str | None = None
    passed_over: str | None = None


class QuantizationResult(StageResult):
    """The chosen candidate, and all that were measured."""

    verdict: ChoiceVerdict
    reason: str
    baseline: CandidateFormat
    tolerance: float
    chosen: Measured | None
    measured: tuple[Measured, ...]

    @property
    def candidate(self) -> Candidate:
        """The chosen candidate's file. Only of a result that chose one."""
        assert self.chosen is not None
        assert self.chosen.candidate is not None
        return self.chosen.candidate
