"""What the batching stage is asked, what a run measures and what the stage answers."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.batching.saturation import Saturation
from tasks.core.result import StageResult
from tasks.core.serving import ServingConfig
from tasks.core.spec import TuningLoad
from tasks.core.verdicts import ChoiceVerdict
from tasks.engines.failures import Failure, FailureKind


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Run(_Frozen):
    """One measurement at one size.

    `latency_ms` by name (`ttft_p95`, `tpot_p95` …), `throughput` in tokens/s. A run that was out of memory, or has
    a `failure` of another kind, holds no figures.
    """

    batch: int = Field(ge=1)
    peak_bytes: int | None = Field(None, ge=0)
    latency_ms: dict[str, float] = {}
    throughput: float | None = Field(None, ge=0)
    oom: bool = False
    failure: Failure | None = None
    saturation: Saturation | None = None
    """How waits went, of a run in an open loop."""
    sm_activity: float | None = Field(None, ge=0, le=1)
    """Share of the GPUs' SMs that were busy, where NVML tells it; not what it calls GPU utilisation."""
    preemptions: int | None = Field(None, ge=0)
    """Sequences that the engine put off for want of room for keys and values, where it counts them."""

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
        """Whether it holds figures."""
        return self.fault is None

    @property
    def fault(self) -> Failure | None:
        """What went wrong, of a run that holds no figures."""
        if self.failure is None and self.oom:
            return Failure(kind=FailureKind.OUT_OF_MEMORY, what=FailureKind.OUT_OF_MEMORY)
        return self.failure


class Placement(_Frozen):
    """Where a model's layers lie, how much of the GPUs an engine takes, and how many tokens it takes a step; the same
    words as in `ServingConfig`.

    llama.cpp puts the last `gpu_layers` on GPUs, the output layer first of all, and the caches of these layers with
    them. The others split each layer over `gpus` (the tensor-parallel size) and take `memory_fraction` of each of
    them. Either takes at most `batched_tokens` a step, of which llama.cpp computes `micro_batch_tokens` at once; None
    leaves that to the engine.
    """

    gpu_layers: int = Field(0, ge=0)
    gpus: int = Field(0, ge=0)
    memory_fraction: float = Field(0.9, gt=0, le=1)
    batched_tokens: int | None = Field(None, ge=1)
    micro_batch_tokens: int | None = Field(None, ge=1)

    @property
    def told(self) -> bool:
        """Whether the engine is told anything."""
        return self != Placement()

    @property
    def steps_told(self) -> bool:
        """Whether the engine is told how many tokens to take."""
        return self.batched_tokens is not None or self.micro_batch_tokens is not None


class Footprint(_Frozen):
    """What a candidate will take, predicted from its shape.

    `layer_bytes` are the weights of one of its `layers`, `output_bytes` those of the output layer, `kv_bytes` the
    keys and values of one sequence in one layer at the whole context.
    """

    layers: int = Field(ge=1)
    layer_bytes: int = Field(ge=1)
    output_bytes: int = Field(ge=0)
    kv_bytes: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)


class Devices(_Frozen):
    """Memory that a service may be put into, bytes: of each GPU, in the order in which the engine takes them, and of
    the host for what is left there. All of it, not the share that may be used."""

    gpu_bytes: tuple[int, ...] = ()
    host_bytes: int = Field(ge=0)


class Limits(_Frozen):
    """What the answer must keep: peak memory, latencies by name in ms; and the search's own bounds.

    `tolerance` is the share of the best throughput that may be given up for a smaller size. `rate_per_s` are the
    requests a second of an open loop: the size must keep up with them, and more throughput there cannot be.
    """

    memory_bytes: int = Field(gt=0)
    latency_ms: dict[str, float] = {}
    tolerance: float = Field(0.05, ge=0, lt=1)
    max_batch: int = Field(ge=1)
    rate_per_s: float | None = Field(None, gt=0)


class Fit(StrEnum):
    """What became of a size."""

    FITS = "fits"
    OUT_OF_MEMORY = "out of memory"
    FAILED = "failed"
    MEMORY = "too much memory"
    LATENCY = "too slow"
    SATURATED = "saturated"


class SizeFigures(_Frozen):
    """All runs of one size together: medians, and the largest peak."""

    batch: int
    runs: int
    fit: Fit
    peak_bytes: int | None = None
    latency_ms: dict[str, float] = {}
    latency_high_ms: dict[str, float] = {}
    """Upper limits of the latencies, one-sided; of a size measured once, what was measured."""
    throughput: float = 0.0
    sm_activity: float | None = None
    preemptions: float | None = None
    """A run's, the median; None where the engine does not count them."""
    why: str = ""
    failures: tuple[Failure, ...] = ()
    """What went wrong, run by run, a mishap that did not happen again too; last that the size is too slow."""

    @property
    def fits(self) -> bool:
        """Whether every bound is kept."""
        return self.fit == Fit.FITS


class Ask(_Frozen):
    """The search wants `runs` more measurements at `batch`, in a fresh process."""

    batch: int
    runs: int = 1


class PlacedRun(_Frozen):
    """One measurement of one placement at one size."""

    placement: Placement
    run: Run


class PlacedAsk(_Frozen):
    """The search wants `runs` more measurements of this placement at `batch`, in a fresh process."""

    placement: Placement
    batch: int
    runs: int = 1


class PlacedDecision(_Frozen):
    """The end of a search over placements: a measured placement and size, or none, and why."""

    placement: Placement | None
    batch: int | None
    reason: str


class StepTokens(_Frozen):
    """How many tokens an engine takes: `default` when it is not told, where that is known, and what is worth telling
    it."""

    default: int | None = Field(None, ge=1)
    values: tuple[int, ...] = ()


class Requests(_Frozen):
    """What the load asks, in tokens: of a prompt, and the mean of an answer."""

    prompt_tokens: int = Field(ge=1)
    output_tokens: int = Field(ge=1)


class Space(_Frozen):
    """The settings of an engine that are searched around its batch size.

    `knob` places the model: its layers are offloaded, or split over GPUs; None where there is no choice. `limits` are
    those with all GPUs in use. `batched_tokens` and `micro_batch_tokens` are what it takes a step, as in `Placement`;
    `requests`, where they are known, tell which of them can matter. An engine that fills its steps `by_slot` takes
    the prompts of the first slots first.
    """

    knob: Literal["offload", "tensor_parallel"] | None
    footprint: Footprint
    devices: Devices
    limits: Limits
    memory_fraction: float = Field(0.9, gt=0, le=1)
    batched_tokens: StepTokens = StepTokens()
    micro_batch_tokens: StepTokens = StepTokens()
    requests: Requests | None = None
    by_slot: bool = False


class Decision(_Frozen):
    """The end of a search: a measured size, or none, and why."""

    batch: int | None
    reason: str


class Prior(_Frozen):
    """A size that an earlier record suggests to start from."""

    batch: int = Field(ge=1)
    record: str


class PlacementFigures(_Frozen):
    """One placement with what was measured of it; `name` says it in words, `why` what became of it."""

    name: str
    placement: Placement
    sizes: tuple[SizeFigures, ...]
    chosen: bool = False
    best: SizeFigures | None = None
    """The size with the most throughput that keeps every bound."""
    why: str = ""


class BatchingRequest(_Frozen):
    """Which candidate to serve how, and within which bounds. `config` is at batch 1.

    Where its engine has other settings that are worth a search, such as where it lies on GPUs, `space` says which.
    """

    model_file: Path
    config: ServingConfig
    output_tokens: int = Field(ge=2)
    limits: Limits
    load: TuningLoad = TuningLoad()
    space: Space | None = None


class BatchingResult(StageResult):
    """The batch size with its figures, and every size that was measured. `config` serves at that size.

    Where placements were searched, `placements` are all that were measured, and the rest is of the chosen one.
    """

    verdict: ChoiceVerdict
    reason: str
    batch: int | None
    config: ServingConfig
    limits: Limits
    chosen: SizeFigures | None
    sizes: tuple[SizeFigures, ...]
    oom_hits: int = 0
    placements: tuple[PlacementFigures, ...] = ()
    prior: int | None = None
    """The size that an earlier record suggested to start from."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """As `StageResult` says: the decision's, and what became of each size."""
        return (self.reason, *(f"batch {size.batch}: {size.why}" for size in self.sizes if size.why))
