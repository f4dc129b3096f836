"""`slipway bench`: measure the disk."""

from __future__ import annotations

from pathlib import Path

import click

from deployments.cli.main import print_json


@click.group()
def bench() -> None:
    """Measure the disk."""


@bench.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--fresh", is_flag=True, help="Measure even if that was done in the last 7 days.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def disk(folder: Path, fresh: bool, as_json: bool) -> None:
    """Measure the disk that FOLDER is on with fio, and judge it against the baselines."""
    from flows.measure_disk import measured
    from tasks.staging.models import DiskRequest

    outcome = measured(DiskRequest(folder=folder, fresh=fresh))
    result = outcome.result
    if as_json:
        about = {"mount": result.mount, "at": result.at.isoformat(), "findings": list(result.findings)}
        run = {"verdict": outcome.verdict, "cached": outcome.cached, "record": outcome.record}
        print_json({**run, **result.figures.model_dump(), **about})
        return
    click.echo(f"{outcome.verdict}: {outcome.headline}" + (" (measured before)" if outcome.cached else ""))
    for finding in result.findings:
        click.echo(f"  - {finding}")
