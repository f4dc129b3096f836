"""`slipway kb records | matrix | explain`: read the knowledge base, in a folder or on S3, without Prefect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from deployments.cli.main import print_json
from deployments.cli.params import LARGEST_COUNT, Count
from deployments.cli.show import plain, print_table
from tasks.core.progress import listen
from tasks.core.settings import Settings
from tasks.core.verdicts import StageName

if TYPE_CHECKING:
    from tasks.core.records import Record

_FIGURES = (
    "seconds",
    "batch",
    "tokens/s",
    "memory",
    "at KV budget",
    "ttft p95",
    "tpot p95",
    "quality loss",
    "runs",
)
_SPARE = ("at", "seconds", "runs", "tpot p95", "quality loss", "at KV budget", "record", "hardware", "GPUs")
"""Columns that a narrow terminal omits, in order."""
_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.group()
def kb() -> None:
    """Read the knowledge base."""


@kb.command()
@click.option(
    "--stage", type=click.Choice([stage.value for stage in StageName]), help="Records of one stage."
)
@click.option(
    "--limit",
    type=Count(1, LARGEST_COUNT),
    default=20,
    show_default=True,
    help="Number of records, the newest ones.",
)
@_AS_JSON
def records(stage: str | None, limit: int, as_json: bool) -> None:
    """List records, the oldest first."""
    from tasks.knowledge.report import RECORD_COLUMNS, record_row

    found = read_records(StageName(stage) if stage else None)[-limit:]
    if as_json:
        print_json({"records": [record.model_dump(mode="json", by_alias=True) for record in found]})
        return
    _print(
        RECORD_COLUMNS, [record_row(record) for record in found], "no records yet: slipway deploy SPEC.yaml"
    )


@kb.command()
@click.option(
    "--kv-tokens",
    type=Count(1, 1_000_000_000),
    default=4096,
    show_default=True,
    help="KV budget: number of tokens whose keys and values count in the memory, the same for all engines.",
)
@_AS_JSON
def matrix(kv_tokens: int, as_json: bool) -> None:
    """The best measured parameters for each engine, model and hardware.

    Memory at the KV budget is predicted from the measured sizes, unless one of them had exactly that budget.
    """
    from tasks.knowledge import plan
    from tasks.knowledge.report import MATRIX_COLUMNS, cell_row

    cells = plan.matrix(read_records(), kv_tokens)
    if as_json:
        print_json({"matrix": [cell.model_dump(mode="json") for cell in cells]})
        return
    _print(
        MATRIX_COLUMNS,
        [cell_row(cell) for cell in cells],
        "nothing was measured yet: slipway deploy SPEC.yaml",
    )


@kb.command()
@click.argument("name")
@_AS_JSON
def explain(name: str, as_json: bool) -> None:
    """Show why the service NAME is served as it is: what was tried, what decided, what would have changed it."""
    from deployments.cli.explain import decisions, show_decisions
    from tasks.core.release import ServiceFolder
    from tasks.knowledge import plan
    from tasks.knowledge.report import REASON_COLUMNS, reason_row

    _, release = ServiceFolder(Settings.load().services, name).serving()
    reasons = plan.explain(release.records, read_records())
    if as_json:
        print_json(
            {
                "name": name,
                "release": release.id,
                **decisions(reasons),
                "records": [reason.model_dump(mode="json", by_alias=True) for reason in reasons],
            }
        )
        return
    click.echo(f"{name} serves release {release.id}")
    show_decisions(reasons)
    _print(REASON_COLUMNS, [reason_row(reason) for reason in reasons], "its release names no records")


def read_records(stage: StageName | None = None) -> Sequence[Record]:
    """Records of a stage, or of all, oldest first; what cannot be read is reported on standard error."""
    from blocks.storage.record_store import open_record_store

    listen(lambda _, line: click.echo(line, err=True))
    return open_record_store(Settings.load()).list(stage)


def _print(columns: Sequence[str], rows: Sequence[tuple[str, ...]], otherwise: str) -> None:
    if not rows:
        click.echo(otherwise)
        return
    # Ids, times and words are useless when folded; figures and long names give way.
    whole = [column for column in columns if column not in ("numbers", "subject", "model", "hardware")]
    right = [column for column in _FIGURES if column in columns]
    spare = [column for column in _SPARE if column in columns]
    print_table(
        columns, [[plain(cell) for cell in row] for row in rows], right=right, whole=whole, spare=spare
    )
