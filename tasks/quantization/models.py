"""What the quantization stage is asked, what it measures and what it answers."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from tasks.core.digests import digest_of
from tasks.core.frozen import Frozen
from tasks.core.model_task import ANSWERS, Pooling, Task
from tasks.core.result import StageResult
from tasks.core.spec_kinds import CandidateFormat, QuantizationPolicy
from tasks.core.verdicts import ChoiceVerdict
from tasks.engines.card import Layout, Scored
from tasks.engines.failures import Failure


class TaskItem(Frozen):
    """One line of a task set: a prompt with the `expected` text, or with `choices` and the right one's index."""

    prompt: str = Field(min_length=1)
    expected: str | None = Field(None, min_length=1)
    choices: tuple[str, ...] = ()
    answer: int = Field(0, strict=True)


class Calibration(Frozen):
    """The text that a format's rounding is fitted to: its first `tokens`, in windows of `window` tokens."""

    text: str = Field(repr=False)
    tokens: int = Field(ge=1)
    window: int = Field(ge=1)

    @property
    def digest(self) -> str:
        """Another text makes other weights."""
        return digest_of(self)


class BaselineModel(Frozen):
    """The model that one that is served as it comes is compared with: these files of `model_dir`, in `format`."""

    model_dir: Path
    model_digest: str
    files: tuple[str, ...]
    format: CandidateFormat
    size_bytes: int = Field(gt=0)


class QuantizationRequest(Frozen):
    """Which candidates of which model to measure. `formats[0]` is the baseline.

    `text` is held-out text, needed to compare several formats; `tolerance` the largest accepted loss of quality,
    `task_tolerance` of right answers. What needs more than `memory_bytes` is not tried; None knows no limit.

    The engine loads candidates in `layout`; `unpacks` is true if it keeps all formats in memory as 16 bits.
    `infeasible` says why it cannot compute in a format on this hardware. `quantizer_digest` is that of the
    quantizer's lock, if one is needed as well as the engine; `calibration` is for formats that look at a text.
    """

    model_dir: Path
    model_digest: str
    formats: tuple[CandidateFormat, ...] = Field(min_length=1)
    text: str | None
    tokens: int = Field(ge=64)
    context: int = Field(ge=64)
    tolerance: float = Field(ge=0)
    task_items: tuple[TaskItem, ...] = ()
    task_tolerance: float = Field(0.01, ge=0)
    policy: QuantizationPolicy = QuantizationPolicy.LATENCY
    memory_bytes: int | None = None
    layout: Layout = "gguf-file"
    unpacks: bool = False
    infeasible: dict[CandidateFormat, str] = Field({})
    quantizer_digest: str | None = None
    calibration: Calibration | None = None
    scored_by: Scored = "engine"
    as_is: tuple[str, ...] = ()
    """The files of a model that is served as it comes; empty if candidates are made."""
    stored_as: str | None = None
    """The quantization of such a model."""
    task: Task = Task.GENERATE
    """What the model is for; `pooling` is how an embedding is made."""
    pooling: Pooling | None = None
    baseline: BaselineModel | None = None
    """What such a model is compared with; `formats[0]` is then its format."""


class Candidate(Frozen):
    """The model in one format, as a file or a folder. `digest` is of its bytes; `stored_as` is the quantization of a
    model that is served as it comes."""

    format: CandidateFormat
    path: Path
    digest: str
    size_bytes: int = Field(gt=0)
    stored_as: str | None = None

    @property
    def title(self) -> str:
        """The format, for people: `as-is` alone says little."""
        return f"{self.format} ({self.stored_as})" if self.stored_as else str(self.format)

    @property
    def log(self) -> Path:
        """Where an engine that serves it writes."""
        return self.path.with_name("engine.log")


class TrialPlan(Frozen):
    """What each candidate is measured on: up to `tokens` tokens of `text` in windows of `window` tokens, `slots` of
    them at once, and task items."""

    text: str | None = Field(None, repr=False)
    tokens: int = Field(ge=1)
    window: int = Field(ge=1)
    slots: int = Field(1, ge=1)
    task_items: tuple[TaskItem, ...] = ()
    texts: tuple[str, ...] = Field((), repr=False)
    """What an embedding model is given instead."""
    questions: tuple[tuple[str, tuple[str, ...]], ...] = Field((), repr=False)
    """Queries with documents, which a ranker is given instead."""


class Score(NamedTuple):
    """One token of the text: its natural log-probability, and the likeliest tokens with theirs, in order."""

    token: int
    logprob: float
    ids: array[int]
    logprobs: array[float]

    @property
    def top(self) -> int:
        """The token that the model held likeliest."""
        return self.ids[0]


@dataclass(frozen=True)
class Trial:
    """What one served candidate did: scores of the text's tokens, whether each task item was answered correctly, and
    tokens/s of each single-stream run.

    Of a model for another task, `rows` are the embeddings of the texts or the scores of each query's documents, and
    what is counted are its answers.
    """

    tokens_per_s: tuple[float, ...]
    scores: tuple[Score, ...] = field(default=(), repr=False)
    answers: tuple[bool, ...] = ()
    rows: tuple[tuple[float, ...], ...] = field(default=(), repr=False)


class Estimate(Frozen):
    """A measured value with its 95 % interval."""

    value: float
    low: float
    high: float


class Quality(Frozen):
    """How a candidate compares with the baseline on the same tokens and task items, pair by pair.

    `loss` is perplexity over the baseline's, minus 1: negative if it is better. `divergence` is the mean KL
    divergence from the baseline, nats a token, over the likeliest tokens that both name and all others as one,
    divided by `coverage`, their total probability. `agreement` is the share of tokens on which both think the
    same one likeliest; in `choice_loss` a token on which they differ counts by how much less likely the baseline
    thinks the candidate's choice than its own. `task_loss` is the share of the baseline's right answers that is gone.
    """

    perplexity: float
    loss: Estimate
    divergence: Estimate
    agreement: Estimate
    choice_loss: Estimate
    coverage: float
    tokens: int
    right_answers: float | None = None
    task_loss: Estimate | None = None


class Similarity(Frozen):
    """How near an embedding model or a ranker is to the baseline. `kept` is the mean of one value for each text, the
    cosine of both embeddings, or for each query, the share of pairs of documents in the same order; `lowest` the
    least of them. `difference` is a ranker's largest difference of a score.
    """

    kept: Estimate
    lowest: float
    count: int
    difference: float | None = None


class WeightError(Frozen):
    """The tensor that differs most from the baseline's: root mean square of the difference, in deviations of the
    baseline's values; None if the two cannot be compared."""

    tensor: str
    error: float | None


class Measured(Frozen):
    """One format's figures. `rejected` says why it cannot be chosen; `passed_over` why it was not."""

    format: CandidateFormat
    predicted_bytes: int | None = None
    candidate: Candidate | None = None
    weights: WeightError | None = None
    quality: Quality | None = None
    similarity: Similarity | None = None
    tokens_per_s: float | None = None
    spread: float = 0.0
    rejected: str | None = None
    failure: Failure | None = None
    """How the engine failed, if that is why the candidate was rejected."""
    passing: bool = False
    """Whether the rejection is of this run's making and not of the format's: the next run tries it again."""
    passed_over: str | None = None
    compared_only: bool = False
    """Whether it is another model, which is compared with and never chosen."""


class QuantizationResult(StageResult):
    """The chosen candidate, and all that were measured."""

    verdict: ChoiceVerdict
    reason: str
    policy: QuantizationPolicy
    baseline: CandidateFormat
    tolerance: float
    task_tolerance: float
    scored_by: Scored = "engine"
    task: Task = Task.GENERATE
    chosen: Measured | None
    measured: tuple[Measured, ...]

    @property
    def has_baseline(self) -> bool:
        """Whether quality was compared with that of another model: one that is served as it comes may be alone."""
        return self.baseline is not CandidateFormat.AS_IS

    @property
    def candidate(self) -> Candidate:
        """The chosen candidate. Only of a result that chose one."""
        assert self.chosen is not None
        assert self.chosen.candidate is not None
        return self.chosen.candidate

    @property
    def per_s(self) -> str:
        """The unit of speeds."""
        return f"{ANSWERS[self.task]}/s"

    @property
    def reasons(self) -> tuple[str, ...]:
        """What became of each format."""
        why = ((row.format, row.rejected or row.passed_over) for row in self.measured)
        return tuple(f"{form}: {reason}" for form, reason in why if reason)
