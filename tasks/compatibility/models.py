"""What the compatibility stage is asked, what it reads from a host, and what it answers."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tasks.core.contract import ContractResult
from tasks.core.facts import Facts, Gpu, Packages, ReleaseText, VersionText
from tasks.core.frozen import Frozen
from tasks.core.result import StageResult
from tasks.core.spec_kinds import EngineKind, Target
from tasks.core.verdicts import CompatibilityVerdict

Severity = Literal["block", "warn", "unknown", "info", "pass"]
Precedence = Literal["P0", "P1", "P2", "P3"]

PASSES = (CompatibilityVerdict.PASS, CompatibilityVerdict.WARN)
"""Verdicts with which something runs."""


class Measurement(Frozen):
    """Something tried on this host (P0): a failure blocks, a success may clear rules that name its kind.

    `kind` is what was tried, e.g. `import` of the engine or `engine-start`; `evidence` what it showed.
    """

    kind: Literal["cuda-init", "kernel", "import", "engine-start"]
    passed: bool
    evidence: str


class CompatibilityRequest(Frozen):
    """What is to run on this host. `packages` are those of the environment's lock, by name."""

    engine: EngineKind = Field(description="Serving engine.")
    engine_version: ReleaseText | None = Field(None, description="Its version.")
    packages: Packages = Field({}, description="Version by package of the environment's lock.")
    cuda_build: VersionText | None = Field(
        None, description="CUDA that the packages were built for; read from them when empty."
    )
    family: str | None = Field(None, description="Model family, e.g. deepseek.")
    dtype: str | None = Field(None, description="Type of the weights, e.g. bfloat16.")
    target: Target | None = Field(None, description="Where the service is to run.")
    gpus: int | None = Field(None, ge=0, description="GPUs that the service asks for.")
    python_path: Path | None = Field(
        None, description="Python of the environment, if there is one already: its torch is asked."
    )
    measurements: tuple[Measurement, ...] = Field((), description="What was already tried on this host.")


class NvmlReading(Frozen):
    """What NVML reports. `available` is False without library or driver; `fault` says why it failed. `fabric` is
    whether every GPU has joined the fabric of NVSwitch; None if no GPU says so."""

    available: bool = False
    driver: VersionText | None = None
    cuda_driver: VersionText | None = None
    gpus: tuple[Gpu, ...] = ()
    fault: str | None = None
    fabric: bool | None = None


class SmiReading(Frozen):
    """What the program nvidia-smi prints. `gpus` is the number of GPUs that it lists, `warning` a line about a GPU
    that works nevertheless."""

    driver: VersionText | None = None
    cuda_driver: VersionText | None = None
    gpus: int | None = None
    fault: str | None = None
    warning: str | None = None


class KernelReading(Frozen):
    """What the NVIDIA kernel module reports in `/proc/driver/nvidia`: it answers even if NVML fails. `listed` counts
    GPUs whose name it does not know, too."""

    driver: VersionText | None = None
    gpus: tuple[Gpu, ...] = ()
    listed: int = 0


class TegraReading(Frozen):
    """The board by its device tree, its chip (`tegra234`), and the version of L4T; None on other hosts."""

    model: str | None = None
    chip: str | None = None
    l4t: VersionText | None = None


class FabricReading(Frozen):
    """NVIDIA's fabric manager; `running` is None if that cannot be seen from here, or if there is no NVSwitch."""

    running: bool | None = None
    version: VersionText | None = None


class SystemReading(Frozen):
    """The host without its GPUs. `container` names the kind of container that the survey runs in."""

    glibc: VersionText | None = None
    distribution: str | None = None
    kernel: str | None = None
    cpu: str | None = None
    cpu_count: int | None = None
    memory_bytes: int | None = None
    container: str | None = None


CUDA_LIBRARY = "libcuda.so.1"
"""The user-mode driver, by the name under which programs load it; sightings of its path use that name too."""


class CudaLibraryReading(Frozen):
    """The user-mode driver that the dynamic loader finds: its real path, and the CUDA that it reports."""

    path: str
    cuda: VersionText | None = None


class ToolkitReading(Frozen):
    """NVIDIA's container toolkit: the program, its version if it prints one, and whether a CDI specification names
    NVIDIA's GPUs."""

    program: str | None = None
    version: VersionText | None = None
    cdi: bool = False


class TorchReading(Frozen):
    """What the torch of an environment reports; `cuda` is None in a build without CUDA, `fault` says why it
    could not be asked."""

    version: str | None = None
    cuda: VersionText | None = None
    fault: str | None = None


class Sighting(Frozen):
    """One fact as one source saw it; `value` is None if the source exists but the fact is absent."""

    fact: str
    source: str
    value: str | None


class Survey(Frozen):
    """Facts of a host, and their sightings: if there are two sources for a fact, both are asked.

    `torch` is that of the environment that is to run there, if there is one already.
    """

    facts: Facts
    sightings: tuple[Sighting, ...] = ()
    fault: str | None = None
    warning: str | None = None
    torch: TorchReading | None = None

    def lasting(self) -> dict[str, Any]:
        """What a verdict depends on. Disks do not decide anything, and their free space changes all the time."""
        return self.model_dump(mode="json", exclude={"facts": {"disks"}})


NOT_KNOWN = "NOT-KNOWN-"
"""Begins the rule of a finding about a missing fact."""


class Finding(Frozen):
    """One reason for the verdict, in the form programs read (DESIGN 5). `contradicted_by` are rules that win over it;
    `fix` is empty where only the ways out apply."""

    rule: str
    severity: Severity
    precedence: Precedence
    message: str
    fix: str
    sources: tuple[str, ...]
    contradicted_by: tuple[str, ...] = ()

    @property
    def is_aside(self) -> bool:
        """Whether it decides nothing and tells nothing about the host: a claim that a better source contradicts, or
        rules that could not be judged for want of a fact."""
        return self.severity == "info" and (bool(self.contradicted_by) or self.rule.startswith(NOT_KNOWN))


class KnownBad(Frozen):
    """A combination of packages known to fail, whatever host it is installed on; `package` is one of them."""

    package: str
    finding: Finding


class Change(Frozen):
    """One thing to change: `what` (`driver`, `cuda-compat`, `container toolkit`, `target`, `engine`, `dtype`,
    `cuda_build`, or a package), what it is now, and what it should become."""

    what: str
    current: str | None
    wanted: str


class WayOut(Frozen):
    """Changes that would lift a block together, the verdict they would get, and why these: one short clause."""

    changes: tuple[Change, ...]
    verdict: CompatibilityVerdict
    why: str = ""

    @property
    def text(self) -> str:
        """`vllm 0.32.0 -> 0.19.1, torch 2.13.0 -> 2.10.0`."""
        return ", ".join(
            f"{change.what} {change.current or 'none'} -> {change.wanted}" for change in self.changes
        )


class MatrixRow(Frozen):
    """One release in one CUDA build: the lowest driver on which a GPU runs it, the compute capabilities it serves,
    the lowest glibc if one is known, the versions of Python and transformers, and the verdict on a given host."""

    release: str
    torch: str | None
    cuda: str | None
    driver: str
    gpus: tuple[str, ...]
    glibc: str | None
    python: str | None
    transformers: str | None
    here: CompatibilityVerdict | None = None


class Matrix(Frozen):
    """What fits the listed releases of an engine, the newest first."""

    engine: str
    rows: tuple[MatrixRow, ...]


class TableCheck(ContractResult):
    """Whether one fact table keeps its contract. `last_checked_on` is the day on which a row of it was last compared
    with its source; None if the table only unfolds lists of others."""

    table: str
    last_checked_on: date | None = None


class TablesIdentity(Frozen):
    """What a check of the fact tables depends on: digests of tables and contract, and the version of Great
    Expectations."""

    digest: str
    contract: str
    great_expectations: str


class TablesCheck(Frozen):
    """Whether the fact tables keep their contract. `page` is the file of the Data Docs."""

    identity: TablesIdentity
    page: str
    tables: tuple[TableCheck, ...]

    @property
    def broken(self) -> tuple[TableCheck, ...]:
        """The tables that do not keep it."""
        return tuple(table for table in self.tables if table.breaches)

    @property
    def rows(self) -> int:
        """In all tables."""
        return sum(table.rows for table in self.tables)

    @property
    def expectations(self) -> int:
        """In all tables."""
        return sum(table.expectations for table in self.tables)


class CompatibilityResult(StageResult):
    """The verdict, its reasons, and the facts behind it. After a block, `ways_out` are the nearest
    combinations that would pass. `tables` is the check of the tables behind the verdict; None if they were
    only read."""

    verdict: CompatibilityVerdict
    findings: tuple[Finding, ...]
    ways_out: tuple[WayOut, ...] = ()
    facts: Facts
    sightings: tuple[Sighting, ...] = ()
    tables: TablesCheck | None = None

    @property
    def deciding(self) -> tuple[Finding, ...]:
        """The findings that the verdict follows from."""
        return tuple(one for one in self.findings if one.severity == self.verdict)

    @property
    def reasons(self) -> tuple[str, ...]:
        """What blocks or is not known, what to do about each, and the ways out (`StageResult.reasons`)."""
        found = tuple(f"{one.message} ({one.fix})" if one.fix else one.message for one in self.deciding)
        ways = (f"way out: {way.text}{f' ({way.why})' if way.why else ''}" for way in self.ways_out)
        return (*found, *ways)
