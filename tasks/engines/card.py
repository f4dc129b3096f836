"""What is known about a serving engine, as data: one card each, in `cards/<kind>.toml`, with sources.

A card says what an engine needs, loads and shows; the module of the engine says how its command line is written.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from pydantic import Field, ValidationError, model_validator

from tasks.core.errors import SlipwayError
from tasks.core.frozen import Frozen, first_wrong
from tasks.core.model_task import Task
from tasks.core.pins import pinned_versions
from tasks.core.serving import Loader
from tasks.core.spec_kinds import CARDS, CandidateFormat, EngineKind
from tasks.core.weight_format import WeightFormat

DATA = Path(__file__).parent / "data"

LARGE_GPU_BYTES = 70 * 2**30

Layout = Literal["hf-folder", "gguf-file", "ollama-blobs", "tensorrt-engine", "triton-repository"]
Scored = Literal["engine", "library"]
Prompts = Literal["llama.cpp-tokens", "vllm-tokens", "words", "text"]
Capability = str
"""A GPU's compute capability, e.g. `8.9`; compare only as a version."""


class Sourced(Frozen):
    """A section that says where it comes from."""

    sources: tuple[str, ...] = Field(min_length=1)


class SystemLibrary(Frozen):
    """A shared library that an engine's wheels expect of the host.

    `package` is the Debian package that contains it. For hosts without it, `wheel` is a requirement whose wheels
    carry a copy, at the glob pattern `file` below `site-packages`.
    """

    soname: str
    package: str
    wheel: str | None = None
    file: str | None = None


class Memory(Frozen):
    """What an engine writes when it runs out of memory, in lower case.

    `errors` are words of its own; with `share_too_small` it says that the share of the GPUs' memory that it was given
    leaves no room for the cache. `free_of_total` matches the free and the whole memory of a GPU, as two numbers.
    """

    errors: tuple[str, ...] = ()
    share_too_small: tuple[str, ...] = ()
    free_of_total: str | None = None


class Metrics(Sourced):
    """The engine's own names of its Prometheus metrics, which it shows at `path`.

    `kv_cache_usage` is a share of 1, `preemptions` a counter. `work_counters` count what it has done since its start,
    in `work`; they are summed.
    """

    path: str = "/metrics"
    requests_waiting: str | None = None
    kv_cache_usage: str | None = None
    preemptions: str | None = None
    work: Literal["requests", "tokens"]
    work_counters: tuple[str, ...] = Field(min_length=1)


class Quantization(Sourced):
    """A kind of quantized weights that the engine loads, and where.

    Below `min_compute_capability` it does not compute in it, nor from `not_from_compute_capability` on.
    `cpu`: also on the CPU.
    """

    name: str
    min_compute_capability: Capability | None = None
    not_from_compute_capability: Capability | None = None
    cpu: bool = False

    def runs_on(self, capability: Capability | None) -> bool:
        """Whether it computes in it on a GPU of that capability; on the CPU if None."""
        if capability is None:
            return self.cpu
        floor, end = self.min_compute_capability, self.not_from_compute_capability
        found = Version(capability)
        return floor is not None and found >= Version(floor) and (end is None or found < Version(end))


class Method(Sourced):
    """A method in which a model may come quantized, and how the engine serves such a model as it is.

    Of weights of these `types` alone, by the names of the compatibility tables; of all if there are none. `cpu`:
    whether it serves them on the CPU; None if that is not known. `needs` are requirements that the environment lacks.
    `refused` is why it does not serve them.
    """

    name: str
    types: tuple[str, ...] = ()
    cpu: bool | None = None
    min_compute_capability: Capability | None = None
    needs: tuple[str, ...] = ()
    refused: str | None = None

    def runs_on(self, capability: Capability) -> bool:
        """Whether it serves them on a GPU of that capability."""
        floor = self.min_compute_capability
        return floor is None or Version(capability) >= Version(floor)


class Knob(Frozen):
    """A setting that memory and speed depend on, by its common name.

    `values` are worth trying besides the engine's own `default`, or `default_on_large_gpus` on GPUs of
    `LARGE_GPU_BYTES` or more, if these are known.
    """

    name: Literal["batch", "batched_tokens", "micro_batch_tokens", "tensor_parallel", "offload"]
    flag: str
    meaning: str
    values: tuple[int, ...] = ()
    default: int | None = None
    default_on_large_gpus: int | None = None
    sources: tuple[str, ...] = ()

    def default_on(self, gpu_bytes: int) -> int | None:
        """What the engine takes on GPUs of that size; None if that is not known."""
        return self.default_on_large_gpus if gpu_bytes >= LARGE_GPU_BYTES else self.default


class LoaderRow(Sourced):
    """The engine's arguments for loading files of a `format` by this loader; empty if it does so by default."""

    name: Loader
    format: str
    arguments: tuple[str, ...]


class MakersImage(Sourced):
    """The image that the engine's makers publish for each release, at `repository` under `tag`.

    It gets `shm_bytes` of shared memory, and for the engine's caches a folder in memory of `cache_bytes`.
    Its programs are those that its own search path finds; `python` is one of them.
    """

    repository: str
    tag: str
    python: str = "python3"
    shm_bytes: int = Field(ge=64 << 20)
    cache_bytes: int = Field(ge=64 << 20)

    def name_of(self, version: str) -> str:
        """The image of that release, as its makers call it."""
        return f"{self.repository}:{self.tag.format(version=version)}"


class ParserRow(Sourced):
    """What an engine has under a key of `serving`: all its `names`, and the arguments that choose one.

    In these `{name}` stands for it. `default` is chosen without any argument.
    """

    key: Literal["tool_parser", "reasoning_parser", "structured_output"]
    names: tuple[str, ...] = Field(min_length=1)
    arguments: tuple[str, ...] = ()
    default: str | None = None

    def choosing(self, name: str) -> tuple[str, ...]:
        """The arguments that choose `name`."""
        return () if name == self.default else tuple(one.replace("{name}", name) for one in self.arguments)


class StartReport(NamedTuple):
    """What an engine decided at its start: layers on GPUs, and tokens whose keys and values it has room for."""

    gpu_layers: int | None = None
    kv_tokens: int | None = None


class StartLog(Sourced):
    """Where its log says so: patterns with one group, a whole number that may have commas in it."""

    gpu_layers: str | None = None
    kv_tokens: str | None = None

    def read(self, log: str) -> StartReport:
        """What the log says: for each figure the last line that has it; None for a figure that is not in the log."""
        return StartReport(_last_number(self.gpu_layers, log), _last_number(self.kv_tokens, log))


def _last_number(pattern: str | None, log: str) -> int | None:
    found = re.findall(pattern, log) if pattern else []
    return int(found[-1].replace(",", "")) if found else None


class EngineCard(Sourced):
    """All that is known about one engine. `ran` is what was run of it here.

    `missing` is why it cannot be deployed yet; without it, there is a module that writes its command line.
    `server_worker` is the script in `worker/` that runs it inside its own environment, if its own program does
    not. `tiny_model` is the script there that writes a model small enough to prove an environment by, and
    `native_classes` the one that tells which types of models the engine knows without code of the model's own.

    `formats` are the candidates that it loads. To measure them a text is `scored_by` the engine through its
    interface, or if that gives no probabilities, by the library that it serves with. `prompts` says whose way of
    asking for an exact number of tokens it knows: prompts are tokens by `/tokenize` of llama.cpp or of vLLM, the
    `words` of a text, or text for an engine that takes no `ignore_eos`.

    `owned` are the arguments that Slipway sets or that it must not be given, in all their names, each with the key of
    the spec to set instead, or the reason (which has spaces). `arguments` are all that there are, if Slipway's own
    worker reads them. An argument with several values has them one after the other (`spaces`), or is repeated before
    each, as those are that are named in `repeated`. Names have dashes, or `underscores`. `help` is the command
    that prints all arguments: a program of the environment, or the worker. `follows` are the distributions whose
    version the engine's release decides.
    """

    kind: EngineKind
    title: str
    version: str
    package: str
    """Distribution whose installed version is the engine's version."""
    requirements: tuple[str, ...] = ()
    """PEP 508 requirements of its environment."""
    index: str | None = None
    """The makers' own package index, if PyPI has no wheels of the engine."""
    imports: tuple[str, ...] = ()
    """Modules that the proof of an environment imports."""
    server_packages: tuple[str, ...] = ()
    """Distributions that serving needs: all that goes into an image, with what they require."""
    server_imports: tuple[str, ...] = ()
    """Modules that the server worker imports: what an image is proved by."""
    server_worker: str | None = None
    tiny_model: str | None = None
    native_classes: str | None = None
    needs_gpu: bool
    min_compute_capability: Capability | None = None
    layouts: tuple[Layout, ...] = Field(min_length=1)
    formats: tuple[CandidateFormat, ...] = ()
    scored_by: Scored | None = None
    prompts: Prompts | None = None
    tasks: tuple[Task, ...] = (Task.GENERATE,)
    """What models are for that it serves."""
    tasks_from: str | None = None
    """The release from which it has the arguments for tasks other than `generate`."""
    max_batch: int = Field(1, ge=1)
    """Most sequences that one process serves at once."""
    maps_files: bool = True
    """Whether it maps the model's files, so that what is in the page cache loads at once."""
    bfloat16_from: Capability | None = None
    """The compute capability below which it refuses bfloat16; None if it computes in it everywhere."""
    unpacks_weights: bool = False
    """Whether it unpacks quantized weights to 16 bits before it computes: they save disk, and no memory."""
    skips_unknown_methods: bool = False
    """Whether it loads a model that is quantized by a method that it does not know as if it were not quantized."""
    reads_hf_quant_config: bool = False
    """Whether it reads how a model is quantized from `hf_quant_config.json`, if `config.json` does not say."""
    fills_steps_by_slot: bool = False
    """Whether the first slots' prompts are taken first, so that the last wait for ever if a step is too small."""
    own_architectures: bool = False
    """Whether it runs architectures that come with code of their own."""
    lists: Literal["repeated", "spaces"] = "repeated"
    repeated: tuple[str, ...] = ()
    underscores: bool = False
    colon_in_names: bool = True
    """Whether further names of the model may contain a colon."""
    arguments: tuple[str, ...] = ()
    help: tuple[str, ...] = ()
    follows: tuple[str, ...] = ()
    owned: dict[str, str] = Field({})
    missing: str | None = None
    ran: str
    status: Literal["verified", "partly-verified"]
    checked_on: date
    system_library: tuple[SystemLibrary, ...] = ()
    start_log: StartLog | None = None
    image: MakersImage | None = None
    memory: Memory = Memory()
    metrics: Metrics | None = None
    quantization: tuple[Quantization, ...]
    method: tuple[Method, ...] = ()
    """The first row that matches counts."""
    knob: tuple[Knob, ...] = ()
    loader: tuple[LoaderRow, ...] = ()
    parser: tuple[ParserRow, ...] = ()

    @model_validator(mode="after")
    def _deployable_or_not(self) -> Self:
        if self.missing is None and not (self.scored_by and self.prompts and self.formats):
            raise ValueError(
                "an engine that is deployed is also measured: give formats, scored_by and prompts, or missing"
            )
        return self

    def requirements_of(self, version: str | None) -> tuple[str, ...]:
        """The requirements for that release of the engine; for the one that the card pins if None.

        A distribution that follows the engine's release has no pin then.
        """
        if version is None or self._pins(version):
            return self.requirements
        return tuple(self._for_release(line, version) for line in self.requirements)

    def _pins(self, version: str) -> bool:
        pinned = pinned_versions("\n".join(self.requirements)).get(canonicalize_name(self.package))
        return pinned is not None and Version(pinned) == Version(version)

    def _for_release(self, line: str, version: str) -> str:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        if name == canonicalize_name(self.package):
            requirement.specifier = SpecifierSet(f"=={version}")
        elif name in map(canonicalize_name, self.follows):
            requirement.specifier = SpecifierSet()
        return str(requirement)

    @property
    def loads_gguf(self) -> bool:
        """Whether its candidates are GGUF files, and not folders."""
        return self.layouts[0] == "gguf-file"

    def method_for(self, weights: WeightFormat) -> Method | None:
        """How it serves weights that come in that format; None if that is not known."""
        own = (row for row in self.method if row.name == weights.method)
        return next((row for row in own if not row.types or weights.weight_type in row.types), None)

    def find_knob(self, name: str) -> Knob | None:
        """The knob of that common name; None if the engine has none."""
        return next((one for one in self.knob if one.name == name), None)

    def load_arguments(self, loader: Loader | None) -> tuple[str, ...] | None:
        """What the command line takes to load by `loader`; None if the engine cannot."""
        return next((one.arguments for one in self.loader if one.name is loader), None)

    def find_parser(self, key: str) -> ParserRow | None:
        """What it has under that key of `serving`; None if it has none."""
        return next((one for one in self.parser if one.key == key), None)

    def serves_on(self, capabilities: Iterable[Capability]) -> bool:
        """Whether GPUs of these capabilities are all new enough; without any, whether it serves on the CPU."""
        found = list(capabilities)
        floor = self.min_compute_capability
        if not found:
            return not self.needs_gpu
        return floor is None or all(Version(one) >= Version(floor) for one in found)


@functools.cache
def read_card(kind: EngineKind) -> EngineCard:
    """The card of that engine. Raises `SlipwayError` if it is damaged: it is part of the program."""
    name = f"{kind}.toml"
    values = _read(CARDS / name)
    try:
        return EngineCard.model_validate({"kind": kind, **values})
    except ValidationError as error:
        raise damaged(name, first_wrong(error)) from error


def read_data(name: str) -> dict[str, Any]:
    """A file of `data/`. Raises `SlipwayError` if it is missing or not TOML."""
    return _read(DATA / name)


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise damaged(file.name, f"{type(error).__name__}: {error}") from error


def damaged(name: str, why: str) -> SlipwayError:
    """The catalogue is part of the program: if it cannot be read, it was not installed whole."""
    return SlipwayError(f"the engine catalogue is damaged: {name}: {why}", fix="reinstall Slipway")
