"""Reports of a staged model and of a measured disk. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from tasks.core.digests import short
from tasks.core.markdown import bullets, page, section, table
from tasks.core.records import Number
from tasks.core.verdicts import StageName, StagingVerdict
from tasks.staging.models import DiskFigures, DiskResult, StagingResult
from tasks.staging.plan import RANDOM_WRITE_BASELINE_IOPS, READ_BASELINE_MB_S


def headline(result: StagingResult) -> str:
    """What is staged and what was done for it, for the table of stages."""
    if result.verdict is StagingVerdict.BLOCKED and result.disk:
        return f"{result.findings[0]}; the spec refuses such a disk"
    if result.damaged:
        return f"{result.damaged[0]} has changed at the source since it was staged"
    size = f"{result.shards} shard{'s'[: result.shards != 1]}, {result.size_bytes / 1e6:.1f} MB"
    slow = ""
    if result.verdict is StagingVerdict.SLOW and result.disk:
        slow = f"; disk reads {result.disk.read_mb_s:,.0f} MB/s"
    if result.restaged:
        return f"{size}; restaged {', '.join(result.restaged)}{slow}"
    if not result.copied_bytes:
        return f"{size}; nothing to copy{slow}"
    return f"{size}; {result.copied_bytes / 1e6:.1f} MB copied{slow}"


def numbers(result: StagingResult) -> Mapping[str, Number]:
    """Figures for the record."""
    figures = {
        "size": Number(value=result.size_bytes, unit="B"),
        "shards": Number(value=result.shards, unit="1"),
        "copied": Number(value=result.copied_bytes, unit="B"),
        "copy_time": Number(value=result.copy_seconds, unit="s"),
    }
    return figures | (_disk_numbers(result.disk) if result.disk else {})


def markdown(result: StagingResult) -> str:
    """The artifact."""
    rows = [
        ("source", f"`{result.source}`" + (f" version {result.version}" if result.version else "")),
        ("folder", f"`{result.model_dir}`"),
        ("manifest", f"`{short(result.manifest_digest)}`" if result.manifest_digest else "none"),
        ("size", f"{result.size_bytes / 1e6:.1f} MB in {result.shards} shards"),
        ("copied", f"{result.copied_bytes / 1e6:.1f} MB in {result.copy_seconds:.2f} s"),
    ]
    verify = "" if result.damaged else f"Read every file again: `slipway stage verify {result.model_dir}`."
    return page(
        StageName.STAGING,
        result.verdict,
        headline(result),
        table(("fact", "value"), rows),
        section("Disk", _disk_table(result.disk) if result.disk else ""),
        section("Remarks", bullets(result.findings)),
        verify,
    )


class DiskReport:
    """The same three functions for a measured disk."""

    def headline(self, result: DiskResult) -> str:
        """Its three speeds."""
        figures = result.figures
        by = f" ({figures.read_by})" if figures.read_by else ""
        return (
            f"{result.mount} reads {figures.read_mb_s:.0f} MB/s{by}, writes {figures.write_mb_s:.0f} MB/s, "
            f"{figures.random_write_iops:.0f} random writes/s"
        )

    def numbers(self, result: DiskResult) -> Mapping[str, Number]:
        """Figures for the record."""
        return _disk_numbers(result.figures)

    def markdown(self, result: DiskResult) -> str:
        """The artifact."""
        figures = result.figures
        how = "past the page cache" if figures.direct else "through the page cache"
        return page(
            StageName.DISK,
            result.verdict,
            self.headline(result),
            _disk_table(figures),
            section("Reads", _reads_table(figures) if figures.reads else ""),
            section("Remarks", bullets(result.findings)),
            f"Measured by fio on a file of {figures.file_bytes / 1e6:,.0f} MB, {how}. "
            f"Measure again: `slipway bench disk {result.mount} --fresh`.",
        )


def _reads_table(figures: DiskFigures) -> str:
    fastest = sorted(figures.reads, key=lambda read: -read.mb_s)
    rows = [(str(read.configuration), f"{read.mb_s:,.0f}") for read in fastest]
    return table(("blocks x at once", "MB/s"), rows, right=("MB/s",))


def _disk_numbers(figures: DiskFigures) -> dict[str, Number]:
    return {
        "disk_read": Number(value=figures.read_mb_s, unit="MB/s"),
        "disk_write": Number(value=figures.write_mb_s, unit="MB/s"),
        "disk_random_write": Number(value=figures.random_write_iops, unit="1/s"),
    }


def _disk_table(figures: DiskFigures) -> str:
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
