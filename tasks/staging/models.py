"""What staging is asked for, what it answers, and what it knows about a disk."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from tasks.core.result import StageResult
from tasks.core.sources import FORMS
from tasks.core.spec import DeploySpec, DiskFloor
from tasks.core.verdicts import StagingVerdict


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StagingRequest(_Part):
    """Which model to copy to the local disk, and how."""

    model: str = Field(description=f"{FORMS}.")
    shards: int | Literal["auto"] = Field("auto", description="Number of weight shards; auto by size.")
    disk_benchmark: bool = Field(True, description="Measure the disk with fio if it is installed.")
    disk_floor: DiskFloor = Field(DiskFloor.WARN, description="What a disk below the baselines does.")
    to: Path | None = Field(None, description="Folder to stage into; one below SLIPWAY_HOME when empty.")
    tensor_parallel: int = Field(
        1, ge=1, description="Ranks that will load it: the automatic number of shards is a multiple of this."
    )
    servable: bool = Field(
        True, description="Refuse, before anything is copied, a model whose architecture is not known."
    )
    convertible: bool = Field(
        True, description="Refuse, before anything is copied, a model that cannot be converted to GGUF."
    )

    @classmethod
    def of(cls, spec: DeploySpec, *, convertible: bool) -> Self:
        """What a deploy stages: `convertible` if its engine loads GGUF."""
        return cls(
            model=spec.model,
            shards=spec.staging.shards,
            disk_benchmark=spec.staging.disk_benchmark,
            disk_floor=spec.staging.disk_floor,
            convertible=convertible,
        )


class SourceFile(_Part):
    """One file of a source. `identity` changes whenever its bytes do: an ETag, or times and inode.

    `sha256` is what the source states for its bytes, if anything.
    """

    path: str
    size_bytes: int = Field(ge=0)
    identity: str
    sha256: str | None = None


class DiskRequest(_Part):
    """Which disk to measure."""

    folder: Path = Field(description="Any folder on the disk; it is created if missing.")
    fresh: bool = Field(False, description="Measure even if there is a figure from the last days.")
    thorough: bool = Field(False, description="Try many configurations, on a large file: minutes.")


class ReadConfiguration(_Part):
    """How a disk is read: size of the blocks, and how many at once."""

    block_bytes: int = Field(gt=0)
    depth: int = Field(gt=0)

    def __str__(self) -> str:
        return f"{self.block_bytes >> 20} MiB x {self.depth}"


class MeasuredRead(_Part):
    """What one configuration read."""

    configuration: ReadConfiguration
    mb_s: float = Field(ge=0)


class DiskFigures(_Part):
    """What fio measured on one disk; 1 MB is 10^6 bytes. `read_mb_s` is the best of `reads`."""

    read_mb_s: float = Field(ge=0)
    write_mb_s: float = Field(ge=0)
    random_write_iops: float = Field(ge=0)
    direct: bool = Field(
        description="Whether it bypassed the page cache; False if the file system refuses that."
    )
    file_bytes: int = Field(ge=0, description="Size of the file that was read and written.")
    reads: tuple[MeasuredRead, ...] = Field((), description="Each configuration that was tried.")
    thorough: bool = False

    @property
    def read_by(self) -> ReadConfiguration | None:
        """The configuration that read fastest."""
        return max(self.reads, key=lambda read: read.mb_s).configuration if self.reads else None


class DiskResult(StageResult):
    """How fast one disk is, compared with the baselines (`plan.py`)."""

    verdict: Literal[StagingVerdict.VERIFIED, StagingVerdict.SLOW]
    mount: str
    at: datetime
    figures: DiskFigures
    findings: tuple[str, ...] = ()


class StagingResult(StageResult):
    """A staged model, or why there is none.

    `copied_bytes` is what this run wrote of the model's files; `restaged` names files that had been staged
    before and were missing or damaged; `damaged` those that have changed at the source since they were staged
    (verdict `corrupt`; `manifest_digest` is then empty). `disk` is None if it was not measured.
    """

    verdict: StagingVerdict
    model_dir: Path
    manifest_digest: str
    source: str
    source_digest: str
    version: str | None = None
    size_bytes: int = Field(ge=0)
    shards: int = Field(ge=0)
    copied_bytes: int = Field(ge=0)
    copy_seconds: float = Field(ge=0)
    restaged: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    disk: DiskFigures | None = None
    findings: tuple[str, ...] = ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """See `StageResult.reasons`."""
        return self.findings
