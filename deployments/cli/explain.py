"""What `slipway kb explain` shows: why this format, why this size, what was tried, what would have changed it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import click
from pydantic import ValidationError

from deployments.cli.show import plain, print_table
from tasks.batching import report as batching
from tasks.batching.models import BatchingResult
from tasks.core.records import Record, load_words
from tasks.core.result import StageResult
from tasks.core.settings import Settings
from tasks.core.verdicts import StageName
from tasks.knowledge.models import Reason
from tasks.quantization import report as quantization
from tasks.quantization.models import QuantizationResult

R = TypeVar("R", bound=StageResult)


def show_decisions(reasons: Sequence[Reason]) -> None:
    """Print both decisions, with what was measured for them."""
    changes: list[str] = []
    if found := _read(reasons, StageName.QUANTIZATION, QuantizationResult):
        record, formats = found
        form = formats.chosen.format if formats.chosen else "none"
        click.echo(f"format {form}, by the policy {formats.policy}: {formats.reason}{_load(record)}")
        heads, rows = quantization.table(formats)
        cells = [[plain(cell.strip("*")) for cell in row] for row in rows]
        print_table((*heads[:-1], "why"), cells, right=heads[1:-1], whole=("format",))
        changes += quantization.what_would_change(formats)
    if read := _read(reasons, StageName.BATCHING, BatchingResult):
        record, sizes = read
        click.echo(f"batch {sizes.batch}: {sizes.reason}{_load(record)}")
        heads, rows = batching.why_table(sizes)
        print_table((*heads[:-1], "why"), [[plain(cell) for cell in row] for row in rows], right=heads[:-1])
        for line in batching.why_not_stepped(sizes):
            click.echo(line)
        changes += batching.what_would_change(sizes)
    if changes:
        click.echo("what would have changed it")
        for line in changes:
            click.echo(f"  {line}")


def decisions(reasons: Sequence[Reason]) -> dict[str, Any]:
    """The same for programs."""
    formats = _read(reasons, StageName.QUANTIZATION, QuantizationResult)
    sizes = _read(reasons, StageName.BATCHING, BatchingResult)
    changes = quantization.what_would_change(formats[1]) if formats else []
    changes += batching.what_would_change(sizes[1]) if sizes else []
    return {
        "format": formats[1].reason if formats else None,
        "batch": sizes[1].reason if sizes else None,
        "would_change": changes,
    }


def _read(reasons: Sequence[Reason], stage: StageName, kind: type[R]) -> tuple[Record, R] | None:
    """The record that the release itself names, as its stage's result; None if another version wrote it."""
    for reason in reasons:
        record = reason.record
        if record is not None and record.stage is stage and reason.depth == 0:
            try:
                return record, kind.model_validate(record.evidence["result"])
            except (KeyError, ValidationError):
                return None
    return None


def _load(record: Record) -> str:
    return load_words(record.numbers, Settings.load().busy_share)
