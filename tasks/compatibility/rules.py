"""The rule table and its lookup tables, read once from `data/`."""

from __future__ import annotations

import functools
import re
from datetime import date
from itertools import pairwise
from typing import Any, Literal

from packaging.version import Version
from pydantic import Field, ValidationError, model_validator

from tasks.compatibility.conditions import VERSIONS, Wanted, check
from tasks.compatibility.fact_tables import damaged, read_rows
from tasks.compatibility.models import Measurement, Precedence, Severity
from tasks.core.frozen import Frozen

Status = Literal["verified", "partly-verified", "derived", "claim"]

PLACEHOLDER = re.compile(r"\{([^{}]*)\}")

PLACEHOLDERS = (
    VERSIONS
    | {"container", "disagreement", "dtype", "engine", "family", "gpu.name", "host_fault"}
    | {
        "compiles",
        "gpu.jit",
        "gpu.jit_without",
        "gpu.triton_from",
        "gpu.triton_variable",
        "gpu.torch_has",
        "gpu.torch_instead",
        "platform",
    }
    | {
        "saw.cuda_build",
        "saw.cuda_driver",
        "saw.driver",
        "saw.gpu_count",
    }
)
"""Fields that a message may name in braces."""


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
            if name not in PLACEHOLDERS and not name.startswith("packages."):
                raise ValueError(f"{self.id}: the message names {{{name}}}, which is not a field")
        kinds = Measurement.model_fields["kind"].annotation
        unknown = set(self.cleared_by) - set(getattr(kinds, "__args__", ()))
        if unknown:
            raise ValueError(f"{self.id}: no measurement is called {sorted(unknown)}")
        if self.precedence == "P3" and self.severity == "block":
            raise ValueError(f"{self.id}: a P3 row must not block")
        return self


class EngineRow(Row):
    """One engine and whether it serves without a GPU. `flashinfer` is its first release that requires FlashInfer."""

    name: str
    needs_gpu: bool
    aliases: tuple[str, ...]
    flashinfer: str | None = None


class GpuRow(Row):
    """GPUs whose name contains this word."""

    word: str
    cc: str | None = None
    forward_compat: Literal["yes", "some", "no"]


class CapabilityRow(Row):
    """One compute capability and the CUDA versions that compile for it."""

    cc: str
    architecture: str
    min_cuda: str
    last_cuda: str | None = None


class BranchRow(Row):
    """One driver branch and the newest CUDA it supports natively."""

    branch: int
    cuda: str


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


class Tables(Frozen):
    """All rules and lookup tables."""

    rules: tuple[Rule, ...]
    engines: tuple[EngineRow, ...]
    gpus: tuple[GpuRow, ...]
    capabilities: tuple[CapabilityRow, ...]
    branches: tuple[BranchRow, ...]
    releases: tuple[ReleaseRow, ...]
    newest: tuple[NewestRow, ...]
    kernels: tuple[KernelsRow, ...]
    triton: tuple[TritonRow, ...]
    jit: tuple[JitRow, ...]
    nvcc: tuple[NvccRow, ...]

    @model_validator(mode="after")
    def _in_order(self) -> Tables:
        tables: dict[str, list[Any]] = {
            "engines": [row.name for row in self.engines],
            "capabilities": [Version(row.cc) for row in self.capabilities],
            "branches": [row.branch for row in self.branches],
            "newest": [row.package for row in self.newest],
            "releases": [(row.package, Version(row.version)) for row in self.releases],
            "kernels": [(row.platform, Version(row.cuda), Version(row.since)) for row in self.kernels],
            "triton": [Version(row.since) for row in self.triton],
            "jit": [(row.engine, Version(row.since), row.part) for row in self.jit],
            "nvcc": [(row.package, Version(row.since), Version(row.cc)) for row in self.nvcc],
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
        return Tables(
            rules=tuple(Rule.model_validate(row) for row in rows["rules"]),
            engines=tuple(EngineRow.model_validate(row) for row in rows["engines"]),
            gpus=tuple(GpuRow.model_validate(row) for row in rows["gpus"]),
            capabilities=tuple(CapabilityRow.model_validate(row) for row in rows["capabilities"]),
            branches=tuple(BranchRow.model_validate(row) for row in rows["branches"]),
            releases=tuple(ReleaseRow.model_validate(row) for row in rows["releases"]),
            newest=tuple(NewestRow.model_validate(row) for row in rows["newest"]),
            kernels=tuple(KernelsRow.model_validate(row) for row in rows["kernels"]),
            triton=tuple(TritonRow.model_validate(row) for row in rows["triton"]),
            jit=tuple(JitRow.model_validate(row) for row in rows["jit"]),
            nvcc=tuple(NvccRow.model_validate(row) for row in rows["nvcc"]),
        )
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        found = f", {place} {str(first['input'])[:80]!r}" if place else ""
        raise damaged(
            f"{error.title}{found}: {first['msg']}",
            fix="reinstall Slipway; `slipway compat tables` lists what is wrong with them",
        ) from error
