"""A measured disk, as people read it. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from tasks.core.markdown import bullets, page, section, table
from tasks.core.records import Number
from tasks.core.verdicts import StageName
from tasks.staging.disk.models import DiskFigures, DiskResult
from tasks.staging.disk.plan import RANDOM_WRITE_BASELINE_IOPS, READ_BASELINE_MB_S


def headline(result: DiskResult) -> str:
    """Its three speeds."""
    figures = result.figures
    by = f" ({figures.read_by})" if figures.read_by else ""
    return (
        f"{result.mount} reads {figures.read_mb_s:.0f} MB/s{by}, writes {figures.write_mb_s:.0f} MB/s, "
        f"{figures.random_write_iops:.0f} random writes/s"
    )


def numbers(result: DiskResult) -> Mapping[str, Number]:
    """Figures for the record."""
    return figure_numbers(result.figures)


def markdown(result: DiskResult) -> str:
    """The artifact."""
    figures = result.figures
    how = "past the page cache" if figures.direct else "through the page cache"
    return page(
        StageName.DISK,
        result.verdict,
        headline(result),
        figure_table(figures),
        section("Reads", _reads_table(figures) if figures.reads else ""),
        section("Remarks", bullets(result.findings)),
        f"Measured by fio on a file of {figures.file_bytes / 1e6:,.0f} MB, {how}. "
        f"Measure again: `slipway bench disk {result.mount} --fresh`.",
    )


def _reads_table(figures: DiskFigures) -> str:
    fastest = sorted(figures.reads, key=lambda read: -read.mb_s)
    rows = [(str(read.configuration), f"{read.mb_s:,.0f}") for read in fastest]
    return table(("blocks x at once", "MB/s"), rows, right=("MB/s",))


def figure_numbers(figures: DiskFigures) -> dict[str, Number]:
    """Figures for a record."""
    return {
        "disk_read": Number(value=figures.read_mb_s, unit="MB/s"),
        "disk_write": Number(value=figures.write_mb_s, unit="MB/s"),
        "disk_random_write": Number(value=figures.random_write_iops, unit="1/s"),
    }


def figure_table(figures: DiskFigures) -> str:
    """Figures for an artifact."""
    rows = [
        ("sequential read", f"{figures.read_mb_s:,.0f} MB/s", f"{READ_BASELINE_MB_S:,.0f} MB/s"),
        ("sequential write", f"{figures.write_mb_s:,.0f} MB/s", ""),
        (
            "random write, 4 KiB",
            f"{figures.random_write_iops:,.0f} IOPS",
            f"{RANDOM_WRITE_BASELINE_IOPS:,.0f} IOPS",
        ),
    ]
    return table(("disk", "measured", "baseline"), rows, right=("measured", "baseline"))
