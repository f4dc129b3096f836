"""Facts of a host, in the form of `survey --json` and `compat check --facts` (docs/facts.md).

A missing field is not known; `None` or an empty list was looked for, and is absent. pydantic's `model_fields_set`
distinguishes the two.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    StrictBool,
    StrictInt,
    TypeAdapter,
    ValidationError,
    model_serializer,
)

from tasks.core.digests import digest_of
from tasks.core.errors import WrongUseError
from tasks.core.frozen import Frozen


def _version(value: str) -> str:
    """The text unchanged; an invalid version raises an error that says what was expected."""
    try:
        Version(value)
    except InvalidVersion:
        raise ValueError("not a version such as 12.4 or 535.154.05") from None
    return value


def _named_packages(value: dict[str, str]) -> dict[str, str]:
    """A package's canonical name, as indexes compare them: `Flash_Attn` is `flash-attn`."""
    return {str(canonicalize_name(name)): version for name, version in value.items()}


VersionText = Annotated[str, Field(max_length=64), AfterValidator(_version)]
"""A version as text; compare only as `packaging.version.Version`."""


_RELEASE_LETTER = re.compile(r"^[bv](?=[0-9])", re.I)


def release_number(text: str) -> str:
    """A release without the letter before its number: llama.cpp has `b4574`, tags have `v0.30.1`."""
    return _RELEASE_LETTER.sub("", text)


ReleaseText = Annotated[
    VersionText, BeforeValidator(lambda value: release_number(value) if isinstance(value, str) else value)
]
"""A version as text, read without a letter before it."""


def version_or_none(text: str | None) -> str | None:
    """The text if it is a version: tools sometimes print something else."""
    try:
        return TypeAdapter(VersionText).validate_python(text)
    except ValidationError:
        return None


def _nothing_for_none(value: object) -> object:
    return () if value is None else value


def _one_or_nothing(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _one_or_more(value: object) -> object:
    """One text is a list of one: that is how people write a single demand or way."""
    return _nothing_for_none(_one_or_nothing(value))


Packages = Annotated[
    dict[str, ReleaseText],
    BeforeValidator(lambda value: {} if value is None else value),
    AfterValidator(_named_packages),
]
"""Installed version by canonical name."""
_LARGEST = 2**63 - 1
"""Upper bound of counts and sizes."""


class Gpu(Frozen):
    """One GPU as NVML names it.

    `mig` are the profiles of its MIG instances, empty without one; None if MIG is off. With MIG, `memory_bytes` is
    that of the largest instance: a process uses one. `virtual` is how a virtual machine got it, `licensed` whether
    its vGPU has a licence, `driver_model` how Windows drives it.
    """

    name: str
    compute_capability: str | None = Field(None, pattern=r"^[0-9]{1,2}\.[0-9]$")
    memory_bytes: StrictInt | None = Field(None, ge=0, le=_LARGEST)
    uuid: str | None = None
    mig: Annotated[tuple[str, ...] | None, BeforeValidator(_one_or_nothing)] = None
    virtual: Literal["passthrough", "vgpu"] | None = None
    licensed: StrictBool | None = None
    driver_model: Literal["MCDM", "TCC", "WDDM"] | None = None

    @model_serializer(mode="wrap")
    def _without_what_it_is_not(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Most GPUs are neither divided nor virtual."""
        rare = ("mig", "virtual", "licensed", "driver_model")
        return {name: value for name, value in dump(self).items() if value is not None or name not in rare}


class Disk(Frozen):
    """A file system with models or results. `rotational` is what the kernel says, in a virtual machine only a hint;
    `free_bytes` is what was free at the time."""

    mount: str
    device: str | None = None
    file_system: str | None = None
    size_bytes: StrictInt | None = Field(None, ge=0, le=_LARGEST)
    free_bytes: StrictInt | None = Field(None, ge=0, le=_LARGEST)
    rotational: StrictBool | None = None


ContainerGpus = Literal["cdi", "nvidia-runtime"]
"""Ways in which Docker passes GPUs to containers: a CDI specification, NVIDIA's runtime."""


class Facts(Frozen):
    """What a host is, and what would run on it.

    `driver` is the kernel driver, `cuda_driver` the CUDA version of the user-mode driver, `nvcc` the toolkit
    installed on the host, `cuda_build` the CUDA version that the environment's packages were built for,
    `container` the kind of container that the survey ran in, `container_toolkit` the version of NVIDIA's toolkit,
    `cuda_library` the version of the `libcuda.so.1` that programs load, `fabric_manager` that of NVIDIA's service for
    NVSwitch, None if the host has no NVSwitch; `weights_bytes` is the size of the model's weights in `dtype`,
    `image_requires` what the image demands of the driver (NVIDIA_REQUIRE_CUDA).
    """

    driver: VersionText | None = None
    cuda_driver: VersionText | None = None
    nvcc: VersionText | None = None
    gpus: Annotated[tuple[Gpu, ...], BeforeValidator(_nothing_for_none)] = ()
    glibc: VersionText | None = None
    distribution: str | None = None
    kernel: str | None = None
    cpu: str | None = None
    cpu_count: StrictInt | None = Field(None, ge=1, le=_LARGEST)
    memory_bytes: StrictInt | None = Field(None, ge=0, le=_LARGEST)
    disks: Annotated[tuple[Disk, ...], BeforeValidator(_nothing_for_none)] = ()
    container: str | None = None
    container_toolkit: VersionText | None = None
    container_gpus: Annotated[tuple[ContainerGpus, ...], BeforeValidator(_one_or_more)] = ()
    image_requires: Annotated[tuple[str, ...], BeforeValidator(_one_or_more)] = ()
    engine: str | None = None
    engine_version: ReleaseText | None = None
    packages: Packages = Field({})
    cuda_build: VersionText | None = None
    family: str | None = None
    dtype: str | None = None
    weights_bytes: StrictInt | None = Field(None, ge=0, le=_LARGEST)
    target: str | None = None
    gpus_wanted: StrictInt | None = Field(None, ge=0, le=_LARGEST)
    forward_compat: Annotated[StrictBool, BeforeValidator(lambda value: value is not None and value)] = False
    cuda_library: VersionText | None = None
    fabric_manager: Literal["running", "stopped"] | None = None
    fabric_manager_version: VersionText | None = None

    def known(self, field: str) -> bool:
        """Whether this fact is known, even as absent."""
        return field in self.model_fields_set

    @model_serializer(mode="wrap")
    def _known_only(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Unknown facts are omitted in records and files."""
        return {name: value for name, value in dump(self).items() if name in self.model_fields_set}

    @property
    def hardware(self) -> dict[str, object]:
        """What performance depends on: CPU, cores, memory in GiB, GPUs by name and memory."""
        return {
            "cpu": self.cpu,
            "cpu_count": self.cpu_count,
            "memory_gib": round((self.memory_bytes or 0) / 2**30),
            "gpus": sorted((gpu.name, gpu.memory_bytes or 0) for gpu in self.gpus),
        }

    @property
    def fingerprint(self) -> str:
        """Hosts with the same fingerprint share measurements."""
        return digest_of(self.hardware)


LIMIT_BYTES = 10_000_000
"""Largest document of facts: thousands of packages take a few hundred KB."""


def parse_facts(text: str | bytes, *, source: str = "facts") -> Facts:
    """The facts in a JSON document. Raises one `WrongUseError` line that names the first wrong key."""
    try:
        values = json.loads(text, object_pairs_hook=_each_key_once)
        # Half a surrogate pair (\ud800) is valid JSON, but can neither be shown nor stored.
        json.dumps(values, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise WrongUseError(f"{source} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise WrongUseError(f"{source} is not a JSON object", fix='for example {"driver": "535.154.05"}')
    try:
        return Facts.model_validate(values)
    except ValidationError as error:
        raise _explain(error, source) from None


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key occurs twice")
    return values


def _explain(error: ValidationError, source: str) -> WrongUseError:
    first = error.errors()[0]
    path = ".".join(str(piece) for piece in first["loc"])
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        parts: dict[str, type[BaseModel]] = {"gpus": Gpu, "disks": Disk}
        part = parts[str(first["loc"][0])] if len(first["loc"]) > 1 else Facts
        known: Mapping[str, object] = part.model_fields
        near = difflib.get_close_matches(key[:80], known, n=1, cutoff=0.4)
        fix = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return WrongUseError(f"{source}: unknown key {path[:80]!r}", fix=fix)
    if first["type"] == "missing":
        return WrongUseError(f"{source}: the key {path!r} is missing", fix=f"add {path!r}")
    message = (
        first["msg"].removeprefix("Value error, ").replace("tuple", "list").replace("dictionary", "object")
    )
    return WrongUseError(f"{source}: {path}: {message} (got {repr(first['input'])[:80]})")
