"""The deployment spec: what the user wants (docs/spec.md). YAML in, a frozen model out.

Unknown keys are refused with the key's path and the nearest known key.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tasks.core import api_keys, strict_yaml
from tasks.core.engine_options import EngineArgs, EngineEnv, EngineVersion
from tasks.core.errors import SpecError, WrongUseError
from tasks.core.given_files import decode_text, expand_user, read_given
from tasks.core.load import Arrivals
from tasks.core.model_task import Pooling, Task
from tasks.core.serving import ParserName, ServedName
from tasks.core.sources import FILE, FORMS, GGUF, local_folder, split_variant, with_variant
from tasks.core.spec_errors import explain
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


CARDS = Path(__file__).parent.parent / "engines" / "cards"
"""One file for each serving engine that is known. Their names are all that the spec needs of them."""

_NAMES = {
    re.sub("[-.]", "_", name).upper(): name for name in sorted(file.stem for file in CARDS.glob("*.toml"))
}

EngineKind = StrEnum("EngineKind", _NAMES)  # type: ignore[misc]
"""Known serving engines; `slipway engines` says which of them can be deployed today."""

DEFAULT_ENGINE = EngineKind("llama.cpp")


class Target(StrEnum):
    """Where a release runs."""

    PROCESS = "process"
    DOCKER = "docker"

    @property
    def in_image(self) -> bool:
        """Whether it runs in an image: one that is built from the environment's lock, or the makers' own."""
        return self is Target.DOCKER


class CandidateFormat(StrEnum):
    """Formats that the quantization stage can make; the card of an engine says which of them it serves.

    `AS_IS` is a model that comes as GGUF, in whatever quantization: nothing is made.
    """

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"
    Q6_K = "q6_k"
    Q5_K_M = "q5_k_m"
    Q5_1 = "q5_1"
    Q5_0 = "q5_0"
    Q4_K_M = "q4_k_m"
    Q4_1 = "q4_1"
    Q4_0 = "q4_0"
    W8A8 = "w8a8"
    W4A16 = "w4a16"
    FP8 = "fp8"
    AS_IS = "as-is"


DEFAULT_CANDIDATES = (CandidateFormat.F16,)


class QuantizationPolicy(StrEnum):
    """What counts first among the candidates that keep the quality floor."""

    ACCURACY = "accuracy"
    LATENCY = "latency"
    RESOURCES = "resources"


class Hardware(Part):
    """What the service may use of this host."""

    gpus: int = Field(0, ge=0, le=64, description="Number of GPUs; 0 serves on the CPU.")
    cpus: int | None = Field(None, ge=1, le=1024, description="CPU threads; all cores when empty.")
    memory: ByteCount | None = Field(
        None, ge=SMALLEST_MEMORY, description="Memory limit, e.g. 16Gi; the host's when empty."
    )


class EnvironmentManager(StrEnum):
    """What makes the engine's environment; `system` uses an existing one."""

    UV = "uv"
    CONDA = "conda"
    SYSTEM = "system"


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


class DiskFloor(StrEnum):
    """What a disk below the baselines does to a deploy."""

    WARN = "warn"
    BLOCK = "block"


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


class LoadKind(StrEnum):
    """Whether a client waits for its answer before the next request."""

    CLOSED = "closed"
    OPEN = "open"


class LoadGenerator(StrEnum):
    """What sends the requests that batch sizes are measured with."""

    BUILTIN = "builtin"
    GUIDELLM = "guidellm"


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


class DeploySpec(Part):
    """One service: which model, on which engine, where, and how good it must be."""

    name: str = Field(
        pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$",
        description="Name of the service and of the model in its API: a-z, 0-9 and -.",
    )
    model: str = Field(
        description=f"{FORMS}. PATH may be a GGUF file; #q4_k_m at the end chooses one of several in a folder."
    )
    task: Task | None = Field(
        None, description="What users ask the model for; what its files say when empty (docs/embeddings.md)."
    )
    engine: EngineKind = Field(DEFAULT_ENGINE, description="Serving engine.")
    engine_version: EngineVersion | None = Field(
        None, description="Release of the engine; the one that Slipway was tested with when empty."
    )
    engine_args: EngineArgs = Field(
        {},
        description="More arguments for the engine's command line, by name without dashes: true gives a flag, a list "
        "several values. Those that Slipway sets are refused.",
    )
    engine_env: EngineEnv = Field(
        {}, description="More environment variables for the engine, as text. They are not for secrets."
    )
    target: Target = Field(Target.PROCESS, description="Where the release runs.")
    hardware: Hardware = Hardware()
    environment: Environment = Environment()
    staging: Staging = Staging()
    objectives: Objectives = Objectives()
    tuning: Tuning = Tuning()
    serving: Serving = Serving()
    rollout: Rollout = Rollout()
    checks: Checks = Checks()

    @model_validator(mode="after")
    def _images_are_built_from_locks(self) -> Self:
        manager = self.environment.manager
        if self.target.in_image and manager is not EnvironmentManager.UV:
            raise ValueError(f"target {self.target} builds its image from a lock of uv's, not of {manager}")
        return self

    @field_validator("rollout")
    @classmethod
    def _an_image_is_run(cls, value: Rollout, info: ValidationInfo) -> Rollout:
        target = info.data.get("target", Target.DOCKER)  # absent if it is wrong itself
        if value.image is not None and not target.in_image:
            raise ValueError(f"image is for target {Target.DOCKER}, not for {target}")
        return value

    @model_validator(mode="after")
    def _a_release_is_installed(self) -> Self:
        if self.engine_version is not None and self.environment.manager is EnvironmentManager.SYSTEM:
            raise ValueError(
                "engine_version is for environments that Slipway builds; the manager system uses its own"
            )
        return self

    @model_validator(mode="after")
    def _further_names_are_others(self) -> Self:
        if self.name in self.serving.names:
            raise ValueError(f"serving.names: {self.name} is the service's own name, which it always has")
        return self

    @field_validator("model")
    @classmethod
    def _known_source(cls, value: str) -> str:
        return check_source(value)


def load_spec(path: Path, overrides: Sequence[str] = ()) -> DeploySpec:
    """Read a spec file; `overrides` are `KEY=VALUE` with dotted keys and YAML values.

    Relative paths in the file are relative to the file's folder. Raises `SpecError`.
    """
    content = read_given(
        path,
        "spec file",
        limit_bytes=strict_yaml.LIMIT_BYTES,
        fix="give the path of a YAML file",
        missing=SpecError,
        wrong=SpecError,
    )
    values = strict_yaml.parse_yaml(decode_text(content, f"the spec file {path}", SpecError), str(path))
    if not isinstance(values, dict):
        raise SpecError(f"{path} is not a mapping of keys to values", fix="start with `name:` and `model:`")
    for override in overrides:
        _apply_override(values, override)
    return parse_spec(values, source=str(path), base=path.absolute().parent)


def parse_spec(values: Mapping[str, Any], *, source: str = "spec", base: Path | None = None) -> DeploySpec:
    """The model with these values. Raises one `SpecError` that names the first wrong key."""
    try:
        spec = DeploySpec.model_validate(values)
    except ValidationError as error:
        raise explain(error, source, DeploySpec) from None
    return _with_absolute_paths(spec, base, source) if base else spec


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise SpecError(
            f"--set {override[:80]!r} is not KEY=VALUE", fix="for example --set tuning.max_batch=8"
        )
    *parents, last = key.split(".")
    here: Any = values
    for parent in parents:
        here = here.setdefault(parent, {})
        if not isinstance(here, dict):
            raise SpecError(f"--set {key[:80]}: {parent[:80]} is not a section")
    here[last] = strict_yaml.parse_yaml(text, f"--set {key[:80]}")


def _with_absolute_paths(spec: DeploySpec, base: Path, source: str) -> DeploySpec:
    changes: dict[str, Any] = {}
    changes["model"] = _absolute_source(spec.model, base, f"{source}: model")
    # An environment's folder may be a link that its programs refer to: it is not resolved.
    for section, follow in (("environment", False), ("tuning", True), ("serving", True)):
        part: Part = getattr(spec, section)
        given = {
            name: _absolute(value, base, f"{source}: {section}.{name}")
            for name, value in part
            if isinstance(value, Path)
        }
        if given:
            update = {name: Path(os.path.realpath(path)) if follow else path for name, path in given.items()}
            changes[section] = part.model_copy(update=update)
    if (baseline := spec.tuning.baseline) is not None:
        place = _absolute_source(baseline, base, f"{source}: tuning.baseline")
        changes["tuning"] = changes.get("tuning", spec.tuning).model_copy(update={"baseline": place})
    if file := api_keys.key_file(spec.serving.api_key):
        # Not resolved: what rotates a key may replace a link.
        path = _absolute(file, base, f"{source}: serving.api_key names")
        changes["serving"] = spec.serving.model_copy(update={"api_key": f"{FILE}{path}"})
    return spec.model_copy(update=changes)


def _absolute_source(model: str, base: Path, key: str) -> str:
    folder = local_folder(model)
    if folder is None:
        return model
    return with_variant(f"{FILE}{_real(_absolute(folder, base, key))}", split_variant(model)[1])


def _real(path: Path) -> str:
    """The path without links. A GGUF file keeps its name: a Hugging Face cache links it to one that says nothing."""
    real = os.path.realpath(path)
    if path.suffix == GGUF and not real.endswith(GGUF):
        return f"{os.path.realpath(path.parent)}/{path.name}"
    return real


def _absolute(path: Path, base: Path, key: str) -> Path:
    try:
        absolute = base / expand_user(path)
        absolute.lstat()  # an impossible path: too long, or through a file
    except WrongUseError as error:
        raise SpecError(f"{key}: {error.what.partition(': ')[2]}", fix=error.fix) from None
    except (FileNotFoundError, PermissionError):
        pass  # reported where it is used
    except OSError as error:
        raise SpecError(f"{key}: {str(path)[:200]!r}: {error.strerror}") from None
    return absolute.absolute()
