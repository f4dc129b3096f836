"""What the health check samples on its three levels, and what it answers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.core.contract import ContractResult
from tasks.core.frozen import Frozen
from tasks.core.model_task import Task
from tasks.core.result import StageResult
from tasks.core.verdicts import HealthVerdict

Level = Literal["gpu", "process", "service", "contract"]


class HealthLimits(Frozen):
    """The limits that samples are compared with, from the release's spec.

    `gpus` is how many GPUs the service was promised; `memory_bytes` its limit, None without one;
    `restarts` the number of restarts that the last check of this release reported.
    """

    latency_slo_ms: float = Field(500, gt=0)
    gpu_temperature_c: float = Field(85, gt=0)
    gpus: int = Field(0, ge=0)
    memory_bytes: int | None = Field(None, gt=0)
    memory_fraction: float = Field(0.9, gt=0, le=1)
    restarts: int = Field(0, ge=0)


class GpuSample(Frozen):
    """One GPU by NVML. None: this GPU does not report it. `fan` and `memory_used` are shares of the whole."""

    index: int
    name: str
    uuid: str
    temperature_c: float | None = None
    fan: float | None = Field(None, ge=0)
    memory_used: float | None = Field(None, ge=0, le=1)
    slowed: tuple[str, ...] = ()
    """Why the hardware itself throttles its clocks now."""


class ProcessSample(Frozen):
    """The engine's process or container. `memory_bytes` is anonymous memory, resident and swapped."""

    alive: bool
    restarts: int = Field(0, ge=0)
    open_requests: int | None = Field(None, ge=0)
    memory_bytes: int | None = Field(None, ge=0)


class ServiceSample(Frozen):
    """What the service answered. `completion` is the text of the one real completion, None if there was none;
    `latencies_ms` are times to first token of short requests, `failed` is how many of them got no answer.

    `requests_deferred` wait for a free slot; `kv_usage` is the used share of the key-value cache.
    """

    ready: bool
    completion: str | None = None
    fault: str | None = None
    latencies_ms: tuple[float, ...] = ()
    failed: int = Field(0, ge=0)
    requests_deferred: float | None = None
    kv_usage: float | None = None
    task: Task = Task.GENERATE
    """What the service was asked for: of embeddings and scores, times are those until the whole answer."""

    @property
    def waited_for(self) -> str:
        """What the latencies are the time to."""
        return "first token" if self.task is Task.GENERATE else "answer"

    @property
    def mean_ms(self) -> float | None:
        """Mean time to first token, or to the whole answer; None if no request was answered."""
        return sum(self.latencies_ms) / len(self.latencies_ms) if self.latencies_ms else None


class Finding(Frozen):
    """One thing that is wrong. `verdict` is the best verdict that it allows."""

    level: Level
    verdict: HealthVerdict
    message: str
    fix: str | None = None


class Samples(Frozen):
    """One sample of a service on all levels."""

    gpus: tuple[GpuSample, ...] = ()
    process: ProcessSample
    service: ServiceSample


class HealthResult(StageResult):
    """The verdict is the worst that a finding allows; without findings it is `healthy`."""

    verdict: HealthVerdict
    name: str
    release: str
    endpoint: str
    samples: Samples
    limits: HealthLimits
    findings: tuple[Finding, ...] = ()
    contract: ContractResult | None = None

    @property
    def completion(self) -> str | None:
        """The service's answer to the gate's prompt."""
        return self.samples.service.completion

    @property
    def reasons(self) -> tuple[str, ...]:
        """See `StageResult.reasons`."""
        return tuple(finding.message for finding in self.findings)
