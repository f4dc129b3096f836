"""The sections of a spec: what each key means, and which values it may have."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tasks.core import api_keys
from tasks.core.load import Arrivals
from tasks.core.model_task import Pooling
from tasks.core.serving import ParserName, ServedName
from tasks.core.spec_kinds import (
    DEFAULT_CANDIDATES,
    CandidateFormat,
    DiskFloor,
    EnvironmentManager,
    LoadGenerator,
    LoadKind,
    QuantizationPolicy,
)
from tasks.core.spec_values import WEEK_S, YEAR_S, ByteCount, HostName, Rfc3339, check_source, check_value

OWN_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
"""The Python that Slipway runs on: this machine certainly has it."""

HOUR_MS = 3_600_000
SMALLEST_MEMORY = 2**20
_LONGEST_LOAD_S = 86_400
_IMAGE = r"^[a-zA-Z0-9][a-zA-Z0-9._/:@-]*$"


class Part(BaseModel):
    """A section of the spec."""

    # Forms show the keys as written in YAML, not as `Ttft Ms`.
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, field_title_generator=lambda name, _: name
    )
    multiline: ClassVar[frozenset[str]] = frozenset()
    """Keys whose text may contain line breaks."""

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: ValidationInfo) -> Any:
        name = info.field_name or ""
        return check_value(value, cls.model_fields[name].annotation, multiline=name in cls.multiline)


class Hardware(Part):
    """What the service may use of this host."""

    gpus: int = Field(0, ge=0, le=64, description="Number of GPUs; 0 serves on the CPU.")
    cpus: int | None = Field(None, ge=1, le=1024, description="CPU threads; all cores when empty.")
    memory: ByteCount | None = Field(
        None, ge=SMALLEST_MEMORY, description="Memory limit, e.g. 16Gi; the host's when empty."
    )


class Environment(Part):
    """The engine's own Python environment."""

    manager: EnvironmentManager = Field(EnvironmentManager.UV, description="What makes the environment.")
    python: str = Field(
        OWN_PYTHON, pattern=r"^3\.[0-9]{1,2}$", description="Python version of the environment."
    )
    requirements: tuple[str, ...] = Field(
        (), max_length=1000, description="Additional requirements: PEP 508 for uv, match specs for conda."
    )
    exclude_newer: Rfc3339 | None = Field(
        None, description="Ignore packages published after this date (RFC 3339), for repeatable locks."
    )
    torch_backend: str | None = Field(
        None,
        pattern=r"^(auto|cpu|cu[0-9]{3})$",
        description="Build of torch (uv): cpu, cu126 …; auto takes the newest that this host's driver supports.",
    )
    wheels: Path | None = Field(
        None, description="Folder of wheels to install from (uv) instead of a package index."
    )
    channels: tuple[str, ...] = Field(
        (), max_length=100, description="Channels to take packages from (conda), in order of priority."
    )
    path: Path | None = Field(None, description="Folder of the existing environment (system).")

    @model_validator(mode="after")
    def _of_its_manager(self) -> Self:
        """Each key that belongs to a manager is for that manager only."""
        own = {
            EnvironmentManager.UV: {"wheels", "torch_backend"},
            EnvironmentManager.CONDA: {"channels"},
            EnvironmentManager.SYSTEM: {"path"},
        }
        for manager, keys in own.items():
            given = sorted(key for key in keys if getattr(self, key))
            if given and manager != self.manager:
                raise ValueError(f"{given[0]} is for the manager {manager}, not for {self.manager}")
        needed = {EnvironmentManager.CONDA: "channels", EnvironmentManager.SYSTEM: "path"}.get(self.manager)
        if needed and not getattr(self, needed):
            raise ValueError(f"the manager {self.manager} needs {needed}")
        return self


class Staging(Part):
    """How the model is copied to the local disk."""

    shards: Annotated[int, Field(ge=1, le=10_000)] | Literal["auto"] = Field(
        "auto", description="Number of weight shards, 1 to 10000; auto by size."
    )
    disk_benchmark: bool = Field(True, description="Measure the disk with fio if it is installed.")
    disk_floor: DiskFloor = Field(
        DiskFloor.WARN,
        description="If the disk reads below 7000 MB/s or makes fewer than 500,000 random writes/s: warn or refuse.",
    )

    @model_validator(mode="after")
    def _a_floor_is_measured(self) -> Self:
        if self.disk_floor is DiskFloor.BLOCK and not self.disk_benchmark:
            raise ValueError(
                "disk_floor block needs disk_benchmark: a disk is only refused after a measurement"
            )
        return self


class Objectives(Part):
    """What the user needs; decisions are made against these."""

    ttft_ms: float | None = Field(
        None, gt=0, le=HOUR_MS, description="Time to first token, 95th percentile, ms."
    )
    tpot_ms: float | None = Field(
        None, gt=0, le=HOUR_MS, description="Time per output token, 95th percentile, ms."
    )
    latency_ms: float | None = Field(
        None,
        gt=0,
        le=HOUR_MS,
        description="Time to the whole answer of an embedding or rerank model, 95th percentile, ms.",
    )
    policy: QuantizationPolicy = Field(
        QuantizationPolicy.LATENCY,
        description="Among formats that keep the quality: accuracy takes only what keeps 99.9 % of it, latency the "
        "fastest, resources the smallest.",
    )
    quality_tolerance: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Largest accepted loss of quality, relative to the baseline; 0.001 is strict.",
    )
    task_tolerance: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Largest accepted loss of right answers to tuning.task_set; quality_tolerance when empty.",
    )
    memory_fraction: float = Field(
        0.9, ge=0.01, le=1, description="Share of the memory limit that may be used."
    )


class TuningLoad(Part):
    """The load under which batch sizes are measured."""

    kind: LoadKind = Field(
        LoadKind.CLOSED,
        description="closed: as many clients as the batch size, each sending its next request when the last "
        "is answered; open: requests come at a rate, and a size that does not keep up is refused.",
    )
    rate: float | None = Field(None, ge=0.001, le=100_000, description="Requests per second (open).")
    arrivals: Arrivals = Field(
        Arrivals.POISSON, description="How requests are spread over time (open): evenly, or at random."
    )
    requests: int = Field(
        100, ge=20, le=100_000, description="Requests of one run (open); it lasts requests / rate seconds."
    )
    prompt_tokens: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Tokens of each prompt; a quarter of the context, at most 128, when empty.",
    )

    @model_validator(mode="after")
    def _a_rate_with_an_open_loop_only(self) -> Self:
        if self.kind is LoadKind.OPEN and self.rate is None:
            raise ValueError("the kind open needs a rate, requests per second")
        if self.kind is LoadKind.CLOSED and self.rate is not None:
            raise ValueError("a rate is for the kind open: a closed loop sends as fast as it is answered")
        if self.rate is not None and self.requests / self.rate > _LONGEST_LOAD_S:
            raise ValueError(
                f"{self.requests} requests at {self.rate:g}/s take more than a day: reduce their number"
            )
        return self


class Tuning(Part):
    """How candidates and batch sizes are tried."""

    candidates: tuple[CandidateFormat, ...] = Field(
        DEFAULT_CANDIDATES,
        min_length=1,
        description="Formats to make and measure; the first is the baseline. More than one needs quality_text. "
        "as-is: serve a GGUF or quantized model as it comes; so does the default.",
    )
    baseline: str | None = Field(
        None,
        description="The model that is not quantized, to compare one with that is served as-is: a source like model, "
        "staged too. Without it nothing is known of what the quantization has cost.",
    )
    quality_text: Path | None = Field(None, description="Held-out text on which quality is measured.")
    task_set: Path | None = Field(
        None, description="JSON lines of prompts with the right answers, which candidates must match."
    )
    quality_tokens: int = Field(2048, ge=64, le=1_000_000, description="Tokens of that text to measure.")
    calibration_text: Path | None = Field(
        None, description="Text for calibrating w4a16: like the real prompts, without any of quality_text."
    )
    calibration_tokens: int = Field(16_384, ge=1024, le=10_000_000, description="Tokens of that text to use.")
    context: int = Field(512, ge=64, le=1_048_576, description="Context window of one request, tokens.")
    max_batch: int = Field(16, ge=1, le=4096, description="Largest batch size (sequences at once) to try.")
    output_tokens: int = Field(32, ge=2, le=4096, description="Tokens generated by a load request.")
    tolerance: float = Field(
        0.05, ge=0, lt=1, description="Share of the best throughput that a smaller batch may cost."
    )
    load: TuningLoad = TuningLoad()
    load_generator: LoadGenerator = Field(
        LoadGenerator.BUILTIN,
        description="What sends the requests: builtin, or guidellm in its own environment (1.2 GB).",
    )

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        if self.quality_text is None and len(self.candidates) > 1:
            formats = ", ".join(self.candidates)
            raise ValueError(f"{formats} cannot be compared without a text: name one in tuning.quality_text")
        if self.quality_text is None and self.task_set is not None:
            raise ValueError("a task set also needs a text: name one in tuning.quality_text")
        if self.quality_text is None and self.baseline is not None:
            raise ValueError("a baseline also needs a text: name one in tuning.quality_text")
        if CandidateFormat.W4A16 in self.candidates and self.calibration_text is None:
            raise ValueError("w4a16 needs a text for calibration: name one in tuning.calibration_text")
        return self

    @field_validator("baseline")
    @classmethod
    def _known_source(cls, value: str | None) -> str | None:
        return value if value is None else check_source(value)

    @field_validator("candidates")
    @classmethod
    def _distinct(cls, value: tuple[CandidateFormat, ...]) -> tuple[CandidateFormat, ...]:
        if len(set(value)) != len(value):
            raise ValueError("each format once")
        return value


class Serving(Part):
    """What the service offers its users."""

    api_key: str | None = Field(
        None,
        description="Secret with the keys that requests must carry, one a line: file:PATH (mode 600) or block:NAME "
        "(a Prefect Secret block). Everyone may use the service when empty.",
    )
    chat_template: Path | None = Field(
        None, description="Jinja file with the chat template; the model's own when empty."
    )
    pooling: Pooling | None = Field(
        None,
        description="How an embedding model makes one vector of a text; as the model's files say when empty.",
    )
    names: tuple[ServedName, ...] = Field(
        (),
        max_length=20,
        description="Further names of the model in its API: letters, digits and . _ : / -.",
    )
    tool_parser: ParserName | None = Field(
        None, description="What finds tool calls in answers, by the engine's name for it; auto for llama.cpp."
    )
    reasoning_parser: ParserName | None = Field(
        None,
        description="What tells reasoning from answers, by the engine's name for it; auto for llama.cpp.",
    )
    structured_output: ParserName | None = Field(
        None,
        description="What makes answers follow a JSON schema, by the engine's name for it, or auto; "
        "the gate asks for such an answer.",
    )

    @field_validator("names")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("each name once")
        return value

    trust_remote_code: bool = Field(
        False,
        description="Let the engine run the code that the model brings along (auto_map), in its environment.",
    )

    @field_validator("api_key")
    @classmethod
    def _names_a_secret(cls, value: str | None) -> str | None:
        return value if value is None else api_keys.check_reference(value)


class Gate(Part):
    """What a release must do before it gets traffic."""

    multiline: ClassVar[frozenset[str]] = frozenset({"prompt"})

    prompt: str = Field(
        "The",
        min_length=1,
        description="Prompt of the gate's completion, or its message to a model that chats.",
    )
    max_tokens: int = Field(16, ge=1, le=4096, description="Most tokens of the gate's answer.")
    start_timeout_s: float = Field(
        600,
        gt=0,
        le=WEEK_S,
        description="Longest wait for the engine to be ready, here and while it is tuned, s.",
    )


class Rollout(Part):
    """How the release is put into service."""

    host: HostName = Field("127.0.0.1", description="Address the service listens on: IPv4, IPv6 or a name.")
    port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Port of the service; when empty, a free one is chosen at the first deploy and kept.",
    )
    drain_s: float = Field(
        30, ge=0, le=WEEK_S, description="Longest wait for requests in flight at a switch, s."
    )
    base_image: str = Field(
        f"python:{OWN_PYTHON}-slim",
        pattern=_IMAGE,
        max_length=255,
        description="Base image for target docker.",
    )
    image: str | None = Field(
        None,
        pattern=_IMAGE,
        max_length=255,
        description="Image of the engine's makers to serve from (target docker), of the release that is measured; "
        "when empty, an image is built from the environment's lock.",
    )
    pids: int = Field(512, ge=16, le=4_194_304, description="Limit on processes in the container.")
    gate: Gate = Gate()


class Checks(Part):
    """What the nightly checks look for."""

    latency_slo_ms: float = Field(
        500, gt=0, le=HOUR_MS, description="Mean time to first token that counts as slow, ms."
    )
    gpu_temperature_c: float = Field(
        85, gt=0, le=150, description="GPU temperature that counts as hot, degrees Celsius."
    )
    sample_period_s: float = Field(60, ge=0.01, le=86_400, description="Period of the leak sampler, s.")
    confirm_after_s: float = Field(
        86_400, gt=0, le=YEAR_S, description="Time that the samples must cover to confirm a leak, s."
    )
