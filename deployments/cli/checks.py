"""`slipway health NAME` and `slipway leaks judge SERIES.csv`: checks without Prefect."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deployments.cli.main import print_json
from deployments.cli.params import LARGEST_BYTES, LONGEST_S, Count, GivenPath, Number
from tasks.core.verdicts import StageName, says_no

if TYPE_CHECKING:
    from tasks.core.settings import Settings
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
    from tasks.core.settings import Settings
    from tasks.health.report import headline

    result, record = _check(Settings.load(), name, contract=contract, files=files)
    if as_json:
        print_json({**result.model_dump(mode="json"), "headline": headline(result), "record": record})
    else:
        _print_health(result)
    if says_no(StageName.HEALTH, result.verdict):
        sys.exit(3)


def _check(settings: Settings, name: str, *, contract: bool, files: bool) -> tuple[HealthResult, str]:
    """Check, then record; the result and the record's id."""
    from blocks.host.host import fingerprint_here
    from blocks.services.health_instruments import LocalInstruments, SampleContract
    from blocks.storage.record_store import open_record_store
    from tasks.core.records import inputs_digest, new_record
    from tasks.core.release import ServiceFolder
    from tasks.environment.integrity import changed_since_installed
    from tasks.health import apply, plan, report

    folder = ServiceFolder(settings.services, name)
    _, release = folder.serving()
    store = open_record_store(settings)
    records = store.list(StageName.HEALTH)
    before = plan.last_check(records, name, release.id)
    start = time.monotonic()
    samples = SampleContract(records, fingerprint_here())
    result = apply.check(
        folder,
        LocalInstruments(),
        before,
        contract=samples if contract else None,
        compare=partial(changed_since_installed, settings=settings) if files else None,
    )
    inputs = {"release": release.id, "contract": contract}
    record = new_record(
        store=store,
        stage=StageName.HEALTH,
        subject=name,
        host_fingerprint=fingerprint_here(),
        inputs_digest=inputs_digest(StageName.HEALTH, inputs),
        outcome=result.verdict,
        seconds=time.monotonic() - start,
        numbers=report.numbers(result),
        evidence={"inputs": inputs, "result": result.model_dump(mode="json")},
        consulted=[before.id] if before else [],
    )
    store.put(record)
    return result, record.id


def _print_health(result: HealthResult) -> None:
    from rich.markup import escape

    from deployments.cli.show import coloured, print_table
    from tasks.health.report import rows

    print_table(
        ("level", "seen", "value"),
        [(level, escape(what), escape(value)) for level, what, value in rows(result)],
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
    help="Data needed to confirm a leak, s.",
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
