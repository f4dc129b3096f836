"""What is known of a serving engine, as data: one card each, in `data/<kind>.toml`, with sources.

A card says what an engine needs, loads and shows; the module of the engine says how its command line is written.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterable, Mapping
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, NamedTuple

from packaging.version import Version
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.core.errors import SlipwayError
from tasks.core.spec import CandidateFormat, EngineKind

DATA = Path(__file__).parent / "data"

LARGE_GPU_BYTES = 70 * 2**30

Layout = Literal["hf-folder", "gguf-file", "ollama-blobs", "tensorrt-engine", "triton-repository"]
Scored = Literal["engine", "library"]
Capability = str
"""A GPU's compute capability, e.g. `8.9`; compare only as a version."""


class MetricName(StrEnum):
    """The one set of names that all engines' metrics are mapped onto.

    Usage is a share of 1, tokens and preemptions are counters, the `…_seconds` are histograms.
    """

    REQUESTS_RUNNING = "requests_running"
    REQUESTS_WAITING = "requests_waiting"
    KV_CACHE_USAGE = "kv_cache_usage"
    PREEMPTIONS = "preemptions"
    PROMPT_TOKENS = "prompt_tokens"
    OUTPUT_TOKENS = "output_tokens"
    TTFT = "ttft_seconds"
    TPOT = "tpot_seconds"
    QUEUE = "queue_seconds"
    REQUEST = "request_seconds"

    @property
    def is_histogram(self) -> bool:
        """Whether samples come as `_sum` and `_count`."""
        return self.value.endswith("_seconds")


class Part(BaseModel):
    """A section of a card."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Sourced(Part):
    """A section that says where it comes from."""

    sources: tuple[str, ...] = Field(min_length=1)


class SystemLibrary(Part):
    """A shared library that an engine's wheels expect of the host.

    `package` is the Debian package that holds it. For hosts without it, `wheel` is a requirement whose wheels carry
    a copy, at the glob pattern `file` below `site-packages`.
    """

    soname: str
    package: str
    wheel: str | None = None
    file: str | None = None


class Image(Sourced):
    """The stock image of the engine's makers. Its digest must be given in the spec: none could be verified here.

    `documented_tag` is what the makers call it, to look the digest up by; no tag is ever pulled. `entrypoint` is what
    the arguments follow where the image does not start the engine by itself; `port` is what it serves on
    inside, `writable` are folders that it writes into.
    """

    repository: str
    documented_tag: str
    port: int
    entrypoint: tuple[str, ...] = ()
    shm_bytes: int = Field(0, ge=0)
    writable: tuple[str, ...] = ()


class Readiness(Sourced):
    """When an engine is ready: `health` answers 200, and then a real completion comes back. Never the first alone."""

    health: str
    completion: str = "/v1/completions"
    note: str = ""


class Metric(Part):
    """An engine's own metric; its values times `scale` are in the unit of the common name."""

    name: str
    scale: float = Field(1.0, gt=0)


class Metrics(Sourced):
    """Where an engine shows Prometheus metrics, on a `port` of their own if they have one, and which of
    them are which of the common set."""

    path: str | None = None
    port: int | None = None
    names: dict[MetricName, Metric]
    note: str = ""


class Quantization(Sourced):
    """A kind of quantized weights that the engine loads, and where.

    Below `min_compute_capability` it does not compute in it, nor from `not_from_compute_capability` on; from
    `weights_only_from` on it unpacks the weights, which saves memory and no time. `cpu`: also on the processor.
    """

    name: str
    min_compute_capability: Capability | None = None
    not_from_compute_capability: Capability | None = None
    weights_only_from: Capability | None = None
    cpu: bool = False

    def runs_on(self, capability: Capability | None) -> bool:
        """Whether it computes in it on a GPU of that capability; on the processor if None."""
        if capability is None:
            return self.cpu
        floor, end = self.min_compute_capability, self.not_from_compute_capability
        found = Version(capability)
        return floor is not None and found >= Version(floor) and (end is None or found < Version(end))


class Knob(Part):
    """A setting that memory and speed depend on, by its common name.

    `values` are worth trying beside what the engine takes when it is not told: `default`, or `default_on_large_gpus`
    on those of `LARGE_GPU_BYTES` or more, where these are known.
    """

    name: Literal[
        "batch",
        "batched_tokens",
        "micro_batch_tokens",
        "context",
        "memory_fraction",
        "tensor_parallel",
        "offload",
        "kv_dtype",
    ]
    flag: str
    meaning: str
    values: tuple[int, ...] = ()
    default: int | None = None
    default_on_large_gpus: int | None = None
    sources: tuple[str, ...] = ()

    def default_on(self, gpu_bytes: int) -> int | None:
        """What the engine takes on GPUs of that size; None where that is not known."""
        return self.default_on_large_gpus if gpu_bytes >= LARGE_GPU_BYTES else self.default


class Stop(Sourced):
    """How an engine ends: by `signal`, within `grace_s`; `drains` where requests in flight are answered first."""

    signal: Literal["SIGTERM", "SIGINT"]
    grace_s: float = Field(gt=0)
    drains: bool
    note: str = ""


class StartReport(NamedTuple):
    """What an engine decided at its start: layers on GPUs, and tokens whose keys and values it has room for."""

    gpu_layers: int | None = None
    kv_tokens: int | None = None


class StartLog(Sourced):
    """Where its log says so: patterns with one group, a whole number that may have commas in it."""

    gpu_layers: str | None = None
    kv_tokens: str | None = None

    def read(self, log: str) -> StartReport:
        """What the log says, by its last words on it; None for what it does not say."""
        return StartReport(_last_number(self.gpu_layers, log), _last_number(self.kv_tokens, log))


def _last_number(pattern: str | None, log: str) -> int | None:
    found = re.findall(pattern, log) if pattern else []
    return int(found[-1].replace(",", "")) if found else None


class EngineCard(Sourced):
    """All that is known of one engine. `missing` is what a deploy with it still lacks, `ran` what was run of it here.

    `api_model` says by which name its API knows the model: the one it is served under, or where the engine takes no
    such name, the model's path, its last part, or a fixed one. `formats` are the candidates that it loads. To measure
    them a text is `scored_by` the engine through its interface, or where that gives no probabilities, by the library
    that it serves with; None where candidates cannot be measured for it yet.
    """

    kind: EngineKind
    title: str
    version: str
    package: str
    requirements: tuple[str, ...]
    imports: tuple[str, ...]
    server_packages: tuple[str, ...]
    server_imports: tuple[str, ...]
    needs_gpu: bool
    min_compute_capability: Capability | None = None
    layouts: tuple[Layout, ...] = Field(min_length=1)
    formats: tuple[CandidateFormat, ...] = ()
    scored_by: Scored | None = None
    max_batch: int = Field(ge=1)
    maps_files: bool
    """Whether it maps the model's files, so that what is in the page cache loads at once."""
    bfloat16_from: Capability | None = None
    """The compute capability below which it refuses bfloat16; None where it computes in it everywhere."""
    unpacks_weights: bool = False
    """Whether it unpacks quantized weights to 16 bits before it computes: they save disk, and no memory."""
    fills_steps_by_slot: bool = False
    """Whether the first slots' prompts are taken first, so that the last wait for ever where a step is too small."""
    api_model: Literal["served-name", "folder-name", "tensorrt_llm"]
    missing: str | None = None
    ran: str
    status: Literal["verified", "partly-verified"]
    checked_on: date
    system_library: tuple[SystemLibrary, ...] = ()
    image: Image | None = None
    readiness: Readiness
    start_log: StartLog | None = None
    metrics: Metrics
    quantization: tuple[Quantization, ...]
    knob: tuple[Knob, ...]
    stop: Stop

    @property
    def loads_gguf(self) -> bool:
        """Whether its candidates are GGUF files, and no folders."""
        return self.layouts[0] == "gguf-file"

    def translate(self, samples: Mapping[str, float]) -> dict[str, float]:
        """An engine's Prometheus samples under the common names; what it does not show is left out.

        Histograms come as `<name>_sum` (seconds) and `<name>_count`.
        """
        found: dict[str, float] = {}
        for common, own in self.metrics.names.items():
            if not common.is_histogram:
                if own.name in samples:
                    found[common] = samples[own.name] * own.scale
                continue
            for suffix, scale in (("_sum", own.scale), ("_count", 1.0)):
                if own.name + suffix in samples:
                    found[common + suffix] = samples[own.name + suffix] * scale
        return found

    def find_knob(self, name: str) -> Knob | None:
        """The knob of that common name; None where the engine has none."""
        return next((one for one in self.knob if one.name == name), None)

    def quantizations_on(self, capability: Capability | None) -> tuple[str, ...]:
        """The kinds of quantized weights that it computes in there; on the processor if None."""
        return tuple(one.name for one in self.quantization if one.runs_on(capability))

    def serves_on(self, capabilities: Iterable[Capability]) -> bool:
        """Whether GPUs of these capabilities are all new enough; without any, whether it serves on the processor."""
        found = list(capabilities)
        floor = self.min_compute_capability
        if not found:
            return not self.needs_gpu
        return floor is None or all(Version(one) >= Version(floor) for one in found)


@functools.cache
def read_card(kind: EngineKind) -> EngineCard:
    """The card of that engine. Raises `SlipwayError` where it is damaged: it is part of the program."""
    name = f"{kind}.toml"
    values = read_data(name)
    try:
        return EngineCard.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise damaged(name, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def read_data(name: str) -> dict[str, Any]:
    """A file of `data/`. Raises `SlipwayError` where it is missing or no TOML."""
    try:
        return tomllib.loads((DATA / name).read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise damaged(name, f"{type(error).__name__}: {error}") from error


def damaged(name: str, why: str) -> SlipwayError:
    """The catalogue is part of the program: where it cannot be read, it was not installed whole."""
    return SlipwayError(f"the engine catalogue is damaged: {name}: {why}", fix="install Slipway anew")
