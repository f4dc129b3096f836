"""Which disk is measured, and the result."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from tasks.core.frozen import Frozen
from tasks.core.result import StageResult
from tasks.core.verdicts import StagingVerdict


class DiskRequest(Frozen):
    """Which disk to measure."""

    folder: Path = Field(description="Any folder on the disk; it is created if missing.")
    fresh: bool = Field(False, description="Measure even if there is a figure from the last days.")
    thorough: bool = Field(False, description="Try many configurations, on a large file: minutes.")


class ReadConfiguration(Frozen):
    """How a disk is read: size of the blocks, and how many at once."""

    block_bytes: int = Field(gt=0)
    depth: int = Field(gt=0)

    def __str__(self) -> str:
        return f"{self.block_bytes >> 20} MiB x {self.depth}"


class MeasuredRead(Frozen):
    """What one configuration read."""

    configuration: ReadConfiguration
    mb_s: float = Field(ge=0)


class DiskFigures(Frozen):
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
