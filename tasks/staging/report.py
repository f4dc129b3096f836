"""A staged model, and a measured disk, as people read them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tasks.core.digests import short
from tasks.core.records import Number
from tasks.staging.models import DiskFigures, DiskResult, StagingResult
from tasks.staging.plan import RANDOM_WRITE_BASELINE_IOPS, READ_BASELINE_MB_S


def headline(result: StagingResult) -> str:
    """What there is and what was done for it, for the table of stages."""
    if result.damaged:
        return f"the source no longer gives {result.damaged[0]} as it was staged"
    size = f"{result.shards} shard{'s'[: result.shards != 1]}, {result.size_bytes / 1e6:.1f} MB"
    if result.restaged:
        return f"{size}; restaged {', '.join(result.restaged)}"
    if not result.copied_bytes:
        return f"{size}; all of it was there"
    return f"{size}; {result.copied_bytes / 1e6:.1f} MB copied"


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
        ("manifest", f"`{short(result.manifest_digest)}`"),
        ("size", f"{result.size_bytes / 1e6:.1f} MB in {result.shards} shards"),
        ("copied", f"{result.copied_bytes / 1e6:.1f} MB in {result.copy_seconds:.2f} s"),
    ]
    table = ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)]
    disk = ["", *_disk_table(result.disk)] if result.disk else []
    return "\n".join([f"# Staging: {result.verdict}", "", *table, *disk, *_list(result.findings)])


class DiskReport:
    """The same three of a measured disk."""

    def headline(self, result: DiskResult) -> str:
        """Its three speeds."""
        figures = result.figures
        return (
            f"{result.mount} reads {figures.read_mb_s:.0f} MB/s, writes {figures.write_mb_s:.0f} MB/s, "
            f"{figures.random_write_iops:.0f} random writes/s"
        )

    def numbers(self, result: DiskResult) -> Mapping[str, Number]:
        """Figures for the record."""
        return _disk_numbers(result.figures)

    def markdown(self, result: DiskResult) -> str:
        """The artifact."""
        lines = [f"# Disk at {result.mount}: {result.verdict}", "", *_disk_table(result.figures)]
        return "\n".join([*lines, *_list(result.findings)])


def _disk_numbers(figures: DiskFigures) -> dict[str, Number]:
    return {
        "disk_read": Number(value=figures.read_mb_s, unit="MB/s"),
        "disk_write": Number(value=figures.write_mb_s, unit="MB/s"),
        "disk_random_write": Number(value=figures.random_write_iops, unit="1/s"),
    }


def _disk_table(figures: DiskFigures) -> Sequence[str]:
    return [
        "| disk | measured by fio | baseline |",
        "|---|---|---|",
        f"| sequential read | {figures.read_mb_s:.0f} MB/s | {READ_BASELINE_MB_S:.0f} MB/s |",
        f"| sequential write | {figures.write_mb_s:.0f} MB/s | |",
        f"| random write, 4 KiB | {figures.random_write_iops:.0f} IOPS | "
        f"{RANDOM_WRITE_BASELINE_IOPS:.0f} IOPS |",
    ]


def _list(findings: Sequence[str]) -> Sequence[str]:
    return ["", *(f"- {finding}" for finding in findings)] if findings else []
