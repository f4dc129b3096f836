"""A request to tune, and the facts about the model and this host that tuning needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field

from tasks.core.engine_options import EngineArgs, EngineEnv
from tasks.core.frozen import Frozen
from tasks.core.gpus import HostGpu
from tasks.core.model_task import GENERATES, Purpose, Task
from tasks.core.serving import ChatTemplate
from tasks.core.spec import DeploySpec
from tasks.core.spec_kinds import EngineKind
from tasks.core.spec_sections import Gate, Hardware, Objectives, Serving, Tuning
from tasks.engines.families import Family
from tasks.environment.models import EnvironmentResult
from tasks.quantization.models import BaselineModel
from tasks.quantization.sizes import Source
from tasks.staging.models import StagingResult


class TuningRequest(Frozen):
    """A staged model, an engine's environment, and what the user wants from them."""

    name: str = Field(description="Name of the service.")
    engine: EngineKind = Field(description="Serving engine.")
    python_path: Path = Field(description="Python of the engine's environment.")
    environment_digest: str = Field(description="Digest of that environment's lock.")
    model_dir: Path = Field(description="Folder of the staged model.")
    model_digest: str = Field(description="Digest of its manifest.")
    baseline_dir: Path | None = Field(None, description="Folder of the staged tuning.baseline.")
    baseline_digest: str = Field("", description="Digest of its manifest.")
    tuning: Tuning = Tuning()
    objectives: Objectives = Objectives()
    hardware: Hardware = Hardware()
    serving: Serving = Serving()
    engine_args: EngineArgs = Field({}, description="More arguments for the engine's command line.")
    engine_env: EngineEnv = Field({}, description="More environment variables for the engine.")
    task: Task | None = Field(
        None, description="What users ask the model for; what its files say when empty."
    )
    source: str | None = Field(None, description="Where it was staged from.")
    start_timeout_s: float = Field(
        Gate().start_timeout_s, gt=0, description="Longest start of the engine, s."
    )

    @classmethod
    def of(
        cls,
        spec: DeploySpec,
        environment: EnvironmentResult,
        staging: StagingResult,
        baseline: StagingResult | None = None,
    ) -> TuningRequest:
        """What a spec asks of the model that was staged for it, and of the baseline if it names one, in the
        environment that was built for it."""
        return cls(
            name=spec.name,
            engine=spec.engine,
            python_path=environment.python_path,
            environment_digest=environment.lock_digest,
            model_dir=staging.model_dir,
            model_digest=staging.manifest_digest,
            baseline_dir=baseline.model_dir if baseline else None,
            baseline_digest=baseline.manifest_digest if baseline else "",
            tuning=spec.tuning,
            objectives=spec.objectives,
            hardware=spec.hardware,
            serving=spec.serving,
            engine_args=spec.engine_args,
            engine_env=spec.engine_env,
            task=spec.task,
            source=staging.source,
            start_timeout_s=spec.rollout.gate.start_timeout_s,
        )


@dataclass(frozen=True)
class TuningFacts:
    """Facts about the staged model and the host, read once, so that all decisions of a request use the same facts.

    `gpus` are the GPUs that the engine gets, the largest first; `host_bytes` is all of the host's memory, `cpus` the
    number of CPUs that this process may use. `chat` is None for a model without a chat template; `purpose` is what
    the model is served for. `remote_code` are the files of code that the engine may run, with their digests.
    """

    source: Source
    family: Family | None
    gpus: tuple[HostGpu, ...]
    host_bytes: int
    cpus: int
    chat: ChatTemplate | None = None
    purpose: Purpose = GENERATES
    baseline: BaselineModel | None = None
    remote_code: Mapping[str, str] = field(default_factory=dict)
