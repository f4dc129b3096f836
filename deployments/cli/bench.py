"""`slipway bench`: measure the disk, and loading from it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deployments.cli.main import print_json
from deployments.cli.params import Count, GivenPath
from deployments.cli.show import print_table

if TYPE_CHECKING:
    from tasks.core.stage import Outcome
    from tasks.loading.models import LoadingResult


@click.group()
def bench() -> None:
    """Measure the disk, and loading from it."""


@bench.command()
@click.argument("folder", type=GivenPath(file_okay=False))
@click.option("--fresh", is_flag=True, help="Measure again even if there is a result from the last 7 days.")
@click.option(
    "--thorough", is_flag=True, help="Try at least 25 configurations on up to 8 GiB; takes two minutes."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def disk(folder: Path, fresh: bool, thorough: bool, as_json: bool) -> None:
    """Measure the disk that FOLDER is on with fio, and judge it against the baselines."""
    from flows.measure_disk import measure_disk
    from tasks.staging.disk.models import DiskRequest

    outcome = measure_disk.plain(DiskRequest(folder=folder, fresh=fresh, thorough=thorough))
    result = outcome.result
    if as_json:
        about = {"mount": result.mount, "at": result.at.isoformat(), "findings": list(result.findings)}
        run = {"verdict": outcome.verdict, "cached": outcome.cached, "record": outcome.record}
        print_json({**run, **result.figures.model_dump(), **about})
        return
    click.echo(f"{outcome.verdict}: {outcome.headline}" + (" (measured before)" if outcome.cached else ""))
    for finding in result.findings:
        click.echo(f"  - {finding}")


@bench.command()
@click.argument("folder", metavar="DIR", type=GivenPath(file_okay=False))
@click.option("--runs", type=Count(1, 50), default=3, show_default=True, help="Cold loads per loader.")
@click.option("--install", is_flag=True, help="Build an environment with torch and the libraries' loaders.")
@click.option("--fresh", is_flag=True, help="Measure again even if there is a result from the last 7 days.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def load(folder: Path, runs: int, install: bool, fresh: bool, as_json: bool) -> None:
    """Load the safetensors or GGUF files in DIR from the disk with each loader, and choose the fastest golden one."""
    from flows.compare_loaders import compare_loaders
    from tasks.loading.models import LoadingRequest

    outcome = compare_loaders.plain(LoadingRequest(folder=folder, runs=runs, install=install, fresh=fresh))
    if as_json:
        print_json(load_answer(outcome))
    else:
        _print_loaders(outcome)
    if outcome.says_no:
        sys.exit(3)


def load_answer(outcome: Outcome[LoadingResult]) -> dict[str, Any]:
    """The JSON document: the winner's figures, then those of every loader."""
    result = outcome.result
    winner = result.winner
    loaders = [
        {**one.model_dump(mode="json"), "ratio_to_disk": result.ratio_to_disk(one)} for one in result.loaders
    ]
    return {
        "bytes": result.size_bytes,
        "seconds": winner.seconds if winner else None,
        "loader": result.chosen,
        "ratio_to_disk": result.ratio_to_disk(winner) if winner else None,
        "disk_read_mb_s": result.disk_read_mb_s,
        "engine_arguments": result.engine_arguments,
        "verdict": outcome.verdict,
        "cached": outcome.cached,
        "loaders": loaders,
        "findings": list(result.findings),
        "record": outcome.record,
    }


def _print_loaders(outcome: Outcome[LoadingResult]) -> None:
    from tasks.loading.report import row

    result = outcome.result
    click.echo(f"{outcome.verdict}: {outcome.headline}" + (" (measured before)" if outcome.cached else ""))
    columns = ("loader", "s", "MB/s", "of the disk", "CPU s/GB", "memory, MB", "golden")
    measured = [one for one in result.loaders if one.seconds is not None]
    print_table(columns, [row(result, one) for one in measured], right=columns[1:6], whole=columns)
    for engine, arguments in sorted(result.engine_arguments.items()):
        if arguments:
            click.echo(f"  {engine}: {' '.join(arguments)}")
    for finding in result.findings:
        click.echo(f"  - {finding}")
