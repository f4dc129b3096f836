"""A staged model, as people read it. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from tasks.core.digests import short
from tasks.core.markdown import bullets, page, section, table
from tasks.core.records import Number
from tasks.core.verdicts import StageName, StagingVerdict
from tasks.staging.disk import report as disk
from tasks.staging.models import StagingResult


def headline(result: StagingResult) -> str:
    """What is staged and what was done for it, for the table of stages."""
    if result.verdict is StagingVerdict.BLOCKED and result.disk:
        return f"{result.findings[0]}; the spec refuses such a disk"
    if result.damaged:
        return f"{result.damaged[0]} has changed at the source since it was staged"
    size = f"{result.size_bytes / 1e6:.1f} MB"
    if result.shards:  # GGUF files are none
        size = f"{result.shards} shard{'s'[: result.shards != 1]}, {size}"
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
    return figures | (disk.figure_numbers(result.disk) if result.disk else {})


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
        section("Disk", disk.figure_table(result.disk) if result.disk else ""),
        section("Remarks", bullets(result.findings)),
        verify,
    )
