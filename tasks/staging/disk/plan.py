"""Is a disk fast enough to serve models from? Pure."""

from __future__ import annotations

from datetime import datetime

from tasks.core.verdicts import StagingVerdict
from tasks.staging.disk.models import DiskFigures, DiskResult

READ_BASELINE_MB_S = 7000.0
RANDOM_WRITE_BASELINE_IOPS = 500_000.0
"""What the source article asks of a disk that serves models (PCIe 4 NVMe)."""

FIGURES_VALID_S = 7 * 24 * 3600


def judge(figures: DiskFigures, mount: str, now: datetime) -> DiskResult:
    """The verdict on a disk, against the baselines."""
    slow = slow_because(figures)
    cached = (
        ()
        if figures.direct
        else ("the file system does not support direct I/O: the figures include the page cache",)
    )
    return DiskResult(
        verdict=StagingVerdict.SLOW if slow else StagingVerdict.VERIFIED,
        mount=mount,
        at=now,
        figures=figures,
        findings=slow + cached,
    )


def slow_because(figures: DiskFigures) -> tuple[str, ...]:
    """In which ways a disk is below the baselines; empty if in none."""
    below = []
    if figures.read_mb_s < READ_BASELINE_MB_S:
        below.append(
            f"sequential read is {figures.read_mb_s:.0f} MB/s, the baseline {READ_BASELINE_MB_S:.0f}: "
            "models load more slowly from it"
        )
    if figures.random_write_iops < RANDOM_WRITE_BASELINE_IOPS:
        below.append(
            f"random write is {figures.random_write_iops:.0f} IOPS, "
            f"the baseline {RANDOM_WRITE_BASELINE_IOPS:.0f}"
        )
    return tuple(below)
