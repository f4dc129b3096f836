"""What the batching stage is asked, what a run measures and what the stage answers."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from tasks.batching.saturation import Saturation
from tasks.core.frozen import Frozen
from tasks.core.result import StageResult
from tasks.core.serving import ServingConfig
from tasks.core.spec_sections import TuningLoad
from tasks.core.verdicts import ChoiceVerdict
from tasks.engines.failures import Failure, FailureKind


class Run(Frozen):
    """One measurement at one size.

    `latency_ms` by name (`ttft_p95`, `tpot_p95` …), `throughput` in tokens/s, or in answers/s if
    those are embeddings or scores. A run that was out of memory, or has
    a `failure` of another kind, has no figures.
    """

    batch: int = Field(ge=1)
    peak_bytes: int | None = Field(None, ge=0)
    latency_ms: dict[str, float] = Field({})
    throughput: float | None = Field(None, ge=0)
    oom: bool = False
    failure: Failure | None = None
    saturation: Saturation | None = None
    """How waits went, of a run in an open loop."""
    sm_activity: float | None = Field(None, ge=0, le=1)
    """Share of the GPUs' SMs that were busy, if NVML reports it; not what NVML calls GPU utilisation."""
    preemptions: int | None = Field(None, ge=0)
    """Sequences that the engine delayed because its KV cache was full, if it counts them."""
    gpu_layers: int | None = Field(None, ge=0)
    """Layers that the engine put on GPUs, if it was free to choose and reports the number at its start."""
    kv_tokens: int | None = Field(None, ge=0)
    """Number of tokens that its KV cache on GPUs has room for, if it reports that at its start."""

    @model_validator(mode="after")
    def _one_story(self) -> Self:
        if self.failure and self.oom != (self.failure.kind is FailureKind.OUT_OF_MEMORY):
            raise ValueError("oom says otherwise than the kind of the failure")
        return self

    @classmethod
    def failing(cls, batch: int, failure: Failure) -> Self:
        """A run that went wrong."""
        return cls(batch=batch, oom=failure.kind is FailureKind.OUT_OF_MEMORY, failure=failure)

    @property
    def answered(self) -> bool:
        """Whether it has figures."""
        return self.fault is None

    @property
    def fault(self) -> Failure | None:
        """What went wrong, of a run that has no figures."""
        if self.failure is None and self.oom:
            return Failure(kind=FailureKind.OUT_OF_MEMORY, what=FailureKind.OUT_OF_MEMORY)
        return self.failure


class Steps(Frozen):
    """How many tokens an engine takes a step, and computes at once; the same words as in `ServingConfig`.

    None leaves that to the engine.
    """

    batched_tokens: int | None = Field(None, ge=1)
    micro_batch_tokens: int | None = Field(None, ge=1)

    @property
    def are_default(self) -> bool:
        """Whether both are left to the engine."""
        return self == Steps()


class Limits(Frozen):
    """What the answer must keep: peak memory, latencies by name in ms; and the search's own bounds.

    `tolerance` is the share of the best throughput that may be given up for a smaller size. `rate_per_s` are the
    requests a second of an open loop: the size must keep up with them, and more throughput there cannot be.
    `request_tokens` are those of the load's longest request, prompt and answer. An engine whose memory is
    `taken_at_start` needs no more for more sequences.
    """

    memory_bytes: int = Field(gt=0)
    latency_ms: dict[str, float] = Field({})
    tolerance: float = Field(0.05, ge=0, lt=1)
    max_batch: int = Field(ge=1)
    rate_per_s: float | None = Field(None, gt=0)
    request_tokens: int | None = Field(None, ge=1)
    taken_at_start: bool = False


class Fit(StrEnum):
    """What became of a size."""

    FITS = "fits"
    OUT_OF_MEMORY = "out of memory"
    FAILED = "failed"
    MEMORY = "too much memory"
    LATENCY = "too slow"
    SATURATED = "saturated"


class SizeFigures(Frozen):
    """All runs of one size together: medians, and the largest peak."""

    batch: int
    runs: int
    fit: Fit
    peak_bytes: int | None = None
    latency_ms: dict[str, float] = Field({})
    latency_high_ms: dict[str, float] = Field({})
    """Upper limits of the latencies, one-sided; of a size measured once, what was measured."""
    throughput: float = 0.0
    sm_activity: float | None = None
    preemptions: float | None = None
    """The median of the runs; None if the engine does not count them."""
    gpu_layers: int | None = None
    kv_tokens: int | None = None
    """What the engine said of these two at its start, as in `Run`."""
    why: str = ""
    failures: tuple[Failure, ...] = ()
    """What went wrong, run by run, a mishap that did not happen again too; last that the size is too slow."""

    @property
    def fits(self) -> bool:
        """Whether every bound is kept."""
        return self.fit == Fit.FITS


class Ask(Frozen):
    """The search wants `runs` more measurements at `batch`, in a fresh process."""

    batch: int
    runs: int = 1


class SteppedRun(Frozen):
    """One measurement with these steps at one size."""

    steps: Steps
    run: Run


class SteppedAsk(Ask):
    """The same with these steps."""

    steps: Steps


class SteppedDecision(Frozen):
    """The end of a search over steps: measured steps and a measured size, or none, and why."""

    steps: Steps | None
    batch: int | None
    reason: str


class StepTokens(Frozen):
    """How many tokens an engine takes: `default` when it is not told, if that is known, and what is worth telling
    it."""

    default: int | None = Field(None, ge=1)
    values: tuple[int, ...] = ()


class Requests(Frozen):
    """What the load asks, in tokens: of a prompt, and the mean of an answer."""

    prompt_tokens: int = Field(ge=1)
    output_tokens: int = Field(ge=1)


class StepSpace(Frozen):
    """The steps that are searched around the batch size.

    `batched_tokens` and `micro_batch_tokens` are as in `Steps`; `requests`, if they are known, tell which of them
    can matter. An engine that fills its steps `by_slot` takes the prompts of the first slots first.
    """

    limits: Limits
    batched_tokens: StepTokens = StepTokens()
    micro_batch_tokens: StepTokens = StepTokens()
    requests: Requests | None = None
    by_slot: bool = False


class Decision(Frozen):
    """The end of a search: a measured size, or none, and why."""

    batch: int | None
    reason: str


class Prior(Frozen):
    """A size that an earlier record suggests to start from."""

    batch: int = Field(ge=1)
    record: str


class StepFigures(Frozen):
    """Steps with what was measured of them; `name` says them in words, `why` what became of them."""

    name: str
    steps: Steps
    sizes: tuple[SizeFigures, ...]
    chosen: bool = False
    best: SizeFigures | None = None
    """The size with the most throughput that keeps every bound."""
    why: str = ""


class BatchingRequest(Frozen):
    """Which candidate to serve how, and within which bounds. `config` is at batch 1.

    `steps` says which steps are searched, if the engine has a choice.
    """

    model_file: Path
    config: ServingConfig
    output_tokens: int = Field(ge=2)
    limits: Limits
    load: TuningLoad = TuningLoad()
    steps: StepSpace | None = None


class ProbeRequest(Frozen):
    """`runs` measurements of a candidate at one configuration: as many clients as slots, or requests at a rate."""

    model_file: Path
    config: ServingConfig
    log: Path
    output_tokens: int = Field(ge=2)
    load: TuningLoad = TuningLoad()
    runs: int = Field(1, ge=1)


class BatchingResult(StageResult):
    """The batch size with its figures, and every size that was measured. `config` serves at that size.

    Where steps were searched, `steps` are all that were measured, and the rest is of the chosen ones.
    """

    verdict: ChoiceVerdict
    reason: str
    batch: int | None
    config: ServingConfig
    limits: Limits
    chosen: SizeFigures | None
    sizes: tuple[SizeFigures, ...]
    oom_hits: int = 0
    steps: tuple[StepFigures, ...] = ()
    prior: int | None = None
    """The size that an earlier record suggested to start from."""

    @property
    def per_s(self) -> str:
        """The unit of throughput."""
        return f"{self.config.answers}/s"

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reasons of the decision, and what became of each size."""
        return (self.reason, *(f"batch {size.batch}: {size.why}" for size in self.sizes if size.why))
