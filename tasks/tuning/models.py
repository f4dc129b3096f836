"""What tuning is asked, and what it finds on this host."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from tasks.core.frozen import Frozen
from tasks.core.gpus import HostGpu
from tasks.core.spec import DeploySpec, EngineKind, Gate, Hardware, Objectives, Tuning
from tasks.engines.families import Family
from tasks.environment.models import EnvironmentResult
from tasks.quantization.sizes import Source
from tasks.staging.models import StagingResult


class TuningRequest(Frozen):
    """A staged model and an engine's environment, and what the user asks of both."""

    name: str = Field(description="Name of the service.")
    engine: EngineKind = Field(description="Serving engine.")
    python_path: Path = Field(description="Python of the engine's environment.")
    environment_digest: str = Field(description="Digest of that environment's lock.")
    model_dir: Path = Field(description="Folder of the staged model.")
    model_digest: str = Field(description="Digest of its manifest.")
    tuning: Tuning = Tuning()
    objectives: Objectives = Objectives()
    hardware: Hardware = Hardware()
    start_timeout_s: float = Field(
        Gate().start_timeout_s, gt=0, description="Longest start of the engine, s."
    )

    @classmethod
    def of(cls, spec: DeploySpec, environment: EnvironmentResult, staging: StagingResult) -> TuningRequest:
        """What a spec asks of the model that was staged for it, in the environment that was built for it."""
        return cls(
            name=spec.name,
            engine=spec.engine,
            python_path=environment.python_path,
            environment_digest=environment.lock_digest,
            model_dir=staging.model_dir,
            model_digest=staging.manifest_digest,
            tuning=spec.tuning,
            objectives=spec.objectives,
            hardware=spec.hardware,
            start_timeout_s=spec.rollout.gate.start_timeout_s,
        )


@dataclass(frozen=True)
class TuningFacts:
    """The staged model and the host, read once for a request: every decision rests on the same look.

    `gpus` are those that the engine is given, the largest first; `host_bytes` all of the host's memory, `cpus` the
    processors that this process may use.
    """

    source: Source
    family: Family | None
    gpus: tuple[HostGpu, ...]
    host_bytes: int
    cpus: int
