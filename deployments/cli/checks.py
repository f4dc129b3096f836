"""`slipway health NAME` and `slipway leaks judge SERIES.csv`: checks without Prefect."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deployments.cli.main import print_json
from deployments.cli.params import LARGEST_BYTES, LONGEST_S, Count, GivenPath, Number
from deployments.cli.show import coloured, plain, print_table
from tasks.core.verdicts import StageName, says_no

if TYPE_CHECKING:
    from tasks.health.models import HealthResult

_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.command()
@click.argument("name")
@click.option(
    "--contract", is_flag=True, help="Also check the accumulated samples against their contract (seconds)."
)
@click.option("--files", is_flag=True, help="Also compare every file of the engine's environment (seconds).")
@_AS_JSON
def health(name: str, contract: bool, files: bool, as_json: bool) -> None:
    """Check the service NAME: its GPUs, its process, and what it answers."""
    from blocks.host.recorder import open_recorder
    from blocks.services.health_instruments import check_service
    from tasks.core.settings import Settings

    outcome = check_service(open_recorder(Settings.load()), name, contract=contract, files=files)
    if as_json:
        about = {"headline": outcome.headline, "record": outcome.record}
        print_json({**outcome.result.model_dump(mode="json"), **about})
    else:
        _print_health(outcome.result)
    if outcome.says_no:
        sys.exit(3)


def _print_health(result: HealthResult) -> None:
    from tasks.health.report import rows

    print_table(
        ("level", "seen", "value"),
        [(level, plain(what), plain(value)) for level, what, value in rows(result)],
        title=f"{result.name} is {coloured(result.verdict)}",
    )
    if result.contract is not None:
        held = result.contract.expectations - len(result.contract.breaches)
        click.echo(
            f"contract: {held} of {result.contract.expectations} hold on {result.contract.rows} samples"
        )
    for finding in result.findings:
        click.echo(f"{finding.verdict}: {finding.level}: {finding.message}")
        if finding.fix:
            click.echo(f"  fix: {finding.fix}")


@click.group()
def leaks() -> None:
    """Judge memory series."""


@leaks.command()
@click.argument("series", type=GivenPath())
@click.option("--limit-bytes", type=Count(1, LARGEST_BYTES), help="Memory limit, for the forecast.")
@click.option(
    "--confirm-after-s",
    type=Number(0, LONGEST_S, min_open=True),
    default=86_400.0,
    show_default=True,
    help="Time that the samples must cover to confirm a leak, s.",
)
@_AS_JSON
def judge(series: Path, limit_bytes: int | None, confirm_after_s: float, as_json: bool) -> None:
    """Is there a leak in SERIES, a CSV file with the columns t_s,bytes and optionally requests?"""
    from tasks.core.given_files import TEXT_LIMIT_BYTES, decode_text, read_given
    from tasks.leaks import plan
    from tasks.leaks.models import LeakRequest
    from tasks.leaks.series import parse_series

    fix = "give a CSV file with the columns t_s,bytes"
    content = read_given(series, "series", limit_bytes=TEXT_LIMIT_BYTES, fix=fix)
    text = decode_text(content, f"the series {series}")
    request = LeakRequest(limit_bytes=limit_bytes, confirm_after_s=confirm_after_s)
    result = plan.judge(parse_series(text, str(series)), request)
    if as_json:
        print_json(
            result.model_dump(mode="json", include={"verdict", "slope_bytes_per_s", "oom_at_s", "reason"})
        )
    else:
        forecast = "" if result.oom_at_s is None else f"; memory runs out at t_s = {result.oom_at_s:.0f}"
        click.echo(f"{result.verdict}: {result.reason}{forecast}")
    if says_no(StageName.LEAKS, result.verdict):
        sys.exit(3)
