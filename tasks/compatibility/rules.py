"""The rule table and its lookup tables, read once from `data/`."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from datetime import date
from itertools import pairwise
from typing import Any, Literal

from packaging.version import Version
from pydantic import Field, ValidationError, model_validator

from tasks.compatibility.conditions import TEXTS, VERSIONS, Wanted, check
from tasks.compatibility.fact_tables import RawTables, damaged, read_rows, row_name
from tasks.compatibility.models import Measurement, Precedence, Severity
from tasks.core.frozen import Frozen

Status = Literal["verified", "partly-verified", "derived", "claim"]

PLACEHOLDER = re.compile(r"\{([^{}]*)\}")

PLACEHOLDERS = (
    VERSIONS
    | TEXTS
    | {"build_odd_image", "build_way", "cuda12_way", "glibc_package", "glibc_way", "pin_near_way", "pin_way"}
    | {"compat_drivers", "driver_builds", "fabric_manager", "fault_fix", "fault_meaning"}
    | {"image_demand", "weights_room"}
    | {"gpu.jit_without", "gpu.name", "gpu.no_code", "gpu.no_code_way", "gpu.profile"}
    | {"gpu.torch_has", "gpu.torch_instead", "gpu.triton_from", "gpu.triton_variable", "gpu.weights_instead"}
    | {"saw.cuda_build", "saw.cuda_driver", "saw.driver", "saw.gpu_count"}
)
"""Fields that a message may name in braces; also those that no rule asks for."""

UPGRADE = "driver>="
"""Before a version, or `@` and a field with a CUDA: in braces, how to get such a driver."""


class Row(Frozen):
    """What every row of every table says about its source."""

    status: Status
    checked_on: date
    sources: tuple[str, ...] = Field(min_length=1)


class Rule(Row):
    """One rule. It applies if all of `when` holds and nothing of `unless` is known to hold.

    Severity `pass` marks what a vendor allows, or a claim that something works: it becomes a finding only if another
    rule contradicts it. `contradicts` names rules that say otherwise and win if they apply too.
    `cleared_by` are kinds of measurement that prove more than the rule knows.
    """

    id: str = Field(pattern=r"^[A-Z0-9]+(-[A-Z0-9]+)*$")
    precedence: Precedence
    severity: Severity
    when: dict[str, Wanted] = Field(min_length=1)
    unless: dict[str, Wanted] = Field({})
    message: str
    fix: str
    contradicts: tuple[str, ...] = ()
    cleared_by: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _can_be_judged(self) -> Rule:
        for condition in (self.when, self.unless):
            for field, wanted in condition.items():
                check(field, wanted)
        for name in PLACEHOLDER.findall(self.message + self.fix):
            if name not in PLACEHOLDERS and not name.startswith(("packages.", UPGRADE)):
                raise ValueError(f"{self.id}: the message names {{{name}}}, which is not a field")
        kinds = Measurement.model_fields["kind"].annotation
        unknown = set(self.cleared_by) - set(getattr(kinds, "__args__", ()))
        if unknown:
            raise ValueError(f"{self.id}: no measurement is called {sorted(unknown)}")
        if self.precedence == "P3" and self.severity == "block":
            raise ValueError(f"{self.id}: a P3 row must not block")
        return self


class EngineRow(Row):
    """One engine, whether it serves without a GPU, and whether it brings its own CUDA build, in no Python package.
    `flashinfer` is its first release that requires FlashInfer."""

    name: str
    needs_gpu: bool
    own_cuda: bool = False
    aliases: tuple[str, ...]
    flashinfer: str | None = None


class GpuRow(Row):
    """GPUs whose name contains this word."""

    word: str
    cc: str | None = None
    forward_compat: Literal["yes", "some", "no"]


class CapabilityRow(Row):
    """One compute capability, the CUDA versions that compile for it, and the last driver branch that drives it."""

    cc: str
    architecture: str
    min_cuda: str
    last_cuda: str | None = None
    last_branch: int | None = None


class BranchRow(Row):
    """One driver branch and the newest CUDA it supports natively. `major_from` is its first driver that runs every
    build of that CUDA's major version."""

    branch: int
    cuda: str
    major_from: str | None = None


class CompatRow(Row):
    """One cuda-compat package, by its CUDA, and the driver branches on which NVIDIA lets it run."""

    cuda: str
    drivers: tuple[int, ...]


class TegraRow(Row):
    """Drivers of Tegra from `driver` on: their JetPack, the newest CUDA natively and with cuda-compat, the glibc of
    its Ubuntu, and the GPUs that it supports."""

    driver: str
    jetpack: str
    cuda: str
    compat_cuda: str | None = None
    glibc: str
    capabilities: tuple[str, ...]


class FaultRow(Row):
    """What a fault of the driver means, and what to do about it on a host and in a container."""

    pattern: str
    meaning: str
    fix: str
    container_fix: str


class NvswitchRow(Row):
    """GPUs, by a pattern of their name, and how many of them on one host tell that NVSwitch connects them."""

    pattern: str
    gpus: int


class ReleaseRow(Row):
    """One release of torch or of an engine, and its requirements. `cuda` are the builds that are offered, the index's
    default first; `transformers` and `numpy` are comparisons; `triton` is what torch pins."""

    package: str
    version: str
    cuda: tuple[str, ...] = ()
    torch: str | None = None
    triton: str | None = None
    transformers: str | None = None
    numpy: str | None = None
    glibc: str | None = None


class NewestRow(Row):
    """The newest existing version of a package."""

    package: str
    version: str


class BuildRow(Row):
    """The CUDA of a package's wheels. `cuda` are the versions that the wheel on the index was built for, `others`
    those of other builds of the same releases, found at `where` (`{version}` and `{index}` are filled in) or in
    `image`. If a package of `carried_by` is installed, that one contains the binaries. An `optional` package does
    not keep the engine from starting. The wheel on the index lacks code for GPUs of `lacks`; `instead` has it.
    With `any_build` no published build has it, also in an image. An `exact` package loads only the build for the very
    CUDA of torch. Only `engines` use it, for weights of `types`, where it is not optional; all, if none are named."""

    package: str
    releases: str
    cuda: tuple[str, ...] = Field(min_length=1)
    others: tuple[str, ...] = ()
    where: str | None = None
    image: str | None = None
    carried_by: tuple[str, ...] = ()
    optional: bool = False
    lacks: tuple[str, ...] = ()
    instead: str | None = None
    any_build: bool = False
    exact: bool = False
    engines: tuple[str, ...] = ()
    types: tuple[str, ...] = ()


class PinRow(Row):
    """What releases ask of other packages (PEP 508); `why` if METADATA lacks it, `mild` if others mostly work."""

    package: str
    releases: str
    requires: tuple[str, ...] = Field(min_length=1)
    why: str | None = None
    mild: bool = False


class GlibcRow(Row):
    """The glibc that a package's wheels need, by their tags or their binaries; `instead` is what needs less. `build`
    restricts the row to one local version, such as `cu129`; a row with `platform` is about builds for that processor
    without CUDA."""

    package: str
    releases: str
    build: str | None = None
    platform: Literal["aarch64", "x86_64"] | None = None
    glibc: str
    instead: str | None = None


class ImageRow(Row):
    """An engine's image. `tag` is a pattern that may find `version` and `cuda` (`129` for 12.9); `cpu` are images
    without CUDA."""

    image: str
    tag: str
    engine: str
    cpu: bool = False


class PythonRow(Row):
    """The versions of Python that a release supports, as comparisons."""

    package: str
    version: str
    python: str


class KernelsRow(Row):
    """The capabilities that torch's wheels contain code for, by platform, CUDA build, and first and last minor
    release."""

    platform: Literal["aarch64", "x86_64"]
    cuda: str
    since: str
    until: str
    machine_code: tuple[str, ...]
    ptx: str | None = None


class TritonRow(Row):
    """The CUDA versions of the assemblers in Triton, from this release on; `blackwell_ptxas` serves capabilities from
    10.0 on, and `variable` names the environment variable that replaces the one for them."""

    since: str
    ptxas: str
    blackwell_ptxas: str | None = None
    variable: str


class JitRow(Row):
    """What an engine compiles with FlashInfer while it starts, on GPUs of `capability`, and how to do without."""

    engine: str
    since: str
    before: str | None = None
    capability: str
    part: str
    without: str


class NvccRow(Row):
    """The oldest nvcc that compiles a package, from this release on, for one capability."""

    package: str
    since: str
    cc: str
    nvcc: str


class FloorRow(Row):
    """The lowest compute capability that an engine's binaries serve: of these `releases`, built for this `cuda`."""

    engine: str
    cc: str
    releases: str | None = None
    cuda: str | None = None


class WeightTypeRow(Row):
    """One type of weights: `bits` that one takes in memory with its share of the scales, and other names.

    `form` is how people get it: a checkpoint of the model, a GGUF file, or from any checkpoint on loading.
    """

    name: str
    bits: float = Field(gt=0)
    form: Literal["checkpoint", "gguf", "on-load"]
    aliases: tuple[str, ...] = ()


Serving = Literal["native", "emulated", "weight-only", "unpacked", "refused"]
"""How an engine serves a type of weights; the head of `data/weights.toml` says what each means."""


class WeightsRow(Row):
    """How engines serve types of weights on GPUs whose capability satisfies `cc`; the first row that matches counts.

    `families` are patterns of model families.
    """

    engines: tuple[str, ...]
    types: tuple[str, ...]
    cc: str
    serves: Serving
    releases: str | None = None
    families: tuple[str, ...] = ()


class Tables(Frozen):
    """All rules and lookup tables."""

    rules: tuple[Rule, ...]
    engines: tuple[EngineRow, ...]
    gpus: tuple[GpuRow, ...]
    capabilities: tuple[CapabilityRow, ...]
    branches: tuple[BranchRow, ...]
    compat: tuple[CompatRow, ...]
    tegra: tuple[TegraRow, ...]
    faults: tuple[FaultRow, ...]
    nvswitch: tuple[NvswitchRow, ...]
    releases: tuple[ReleaseRow, ...]
    newest: tuple[NewestRow, ...]
    builds: tuple[BuildRow, ...]
    pins: tuple[PinRow, ...]
    glibc: tuple[GlibcRow, ...]
    images: tuple[ImageRow, ...]
    pythons: tuple[PythonRow, ...]
    kernels: tuple[KernelsRow, ...]
    triton: tuple[TritonRow, ...]
    jit: tuple[JitRow, ...]
    nvcc: tuple[NvccRow, ...]
    floors: tuple[FloorRow, ...]
    weight_types: tuple[WeightTypeRow, ...]
    weights: tuple[WeightsRow, ...]

    @model_validator(mode="after")
    def _in_order(self) -> Tables:
        tables: dict[str, list[Any]] = {
            "engines": [row.name for row in self.engines],
            "capabilities": [Version(row.cc) for row in self.capabilities],
            "branches": [row.branch for row in self.branches],
            "compat": [Version(row.cuda) for row in self.compat],
            "tegra": [Version(row.driver) for row in self.tegra],
            "nvswitch": [row.pattern for row in self.nvswitch],
            "newest": [row.package for row in self.newest],
            "releases": [(row.package, Version(row.version)) for row in self.releases],
            "images": [(row.image, row.tag) for row in self.images],
            "pythons": [(row.package, Version(row.version)) for row in self.pythons],
            "kernels": [(row.platform, Version(row.cuda), Version(row.since)) for row in self.kernels],
            "triton": [Version(row.since) for row in self.triton],
            "jit": [(row.engine, Version(row.since), row.part) for row in self.jit],
            "nvcc": [(row.package, Version(row.since), Version(row.cc)) for row in self.nvcc],
            "weight types": [row.name for row in self.weight_types],
        }
        for name, keys in tables.items():
            if any(not here < there for here, there in pairwise(keys)):
                raise ValueError(f"the table of {name} is not sorted, or contains a row twice")
        ids = {rule.id for rule in self.rules}
        if len(ids) < len(self.rules):
            raise ValueError("a rule's id occurs twice")
        for rule in self.rules:
            if unknown := set(rule.contradicts) - ids:
                raise ValueError(f"{rule.id} contradicts {sorted(unknown)}, which are not rules")
        return self


@functools.cache
def load_tables() -> Tables:
    """The tables that come with Slipway. Raises `SlipwayError` if they are damaged."""
    rows = read_rows()
    try:
        return Tables.model_validate(rows)
    except ValidationError as error:
        first = error.errors()[0]
        raise damaged(
            f"{_place(first['loc'], rows)}: {first['msg']}, not {str(first['input'])[:80]!r}"
            if first["loc"]
            else f"{error.title}: {first['msg']}",
            fix="reinstall Slipway; `slipway compat tables` lists what is wrong with them",
        ) from error


def _place(loc: Sequence[str | int], rows: RawTables) -> str:
    """`rules P3 ART-1 status`."""
    table, number, *rest = loc
    return " ".join([str(table), row_name(str(table), rows[str(table)][int(number)]), *map(str, rest)])
