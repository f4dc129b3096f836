"""`slipway deploy`: the whole lifecycle from a terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deployments.cli.main import print_json
from tasks.core.deployment import DeployResult
from tasks.core.settings import Settings
from tasks.core.spec import DeploySpec, load_spec
from tasks.core.verdicts import StageName, says_no

if TYPE_CHECKING:
    from rich.console import Console


@click.command()
@click.argument("spec_file", metavar="SPEC", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Print the plan; do nothing.")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a key of the spec.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def deploy(spec_file: Path, dry_run: bool, overrides: tuple[str, ...], as_json: bool) -> None:
    """Take the model that SPEC names to a running, tuned service."""
    spec = load_spec(spec_file, overrides)
    if dry_run:
        _show_plan(spec, as_json=as_json)
        return
    result = _run(spec, quiet=as_json)
    if as_json:
        print_json(
            {
                "name": result.name,
                "endpoint": result.endpoint,
                "release": result.release,
                "verdict": result.verdict,
                "stages": [
                    row.model_dump(include={"stage", "verdict", "cached", "seconds", "record"})
                    for row in result.stages
                ],
            }
        )
    else:
        _show_result(result)
    if says_no(StageName.LIFECYCLE, result.verdict):
        sys.exit(3)


def _run(spec: DeploySpec, *, quiet: bool) -> DeployResult:
    """Run the lifecycle in this process, on a Prefect API that is there or that is started for it."""
    from rich.console import Console

    from deployments.cli.progress import show_progress
    from deployments.prefect_api import prefect_api
    from tasks.core.progress import listen, say

    console = Console(stderr=quiet)
    with show_progress(console) as listener:
        listen(listener)
        say("prefect", "starting")
        with prefect_api(Settings.load()) as api:
            from flows.deploy_model import deploy_model

            api.wait()
            say("prefect", f"ready at {api.url}")
            with api.quiet_runs():
                return deploy_model(spec)


def _show_plan(spec: DeploySpec, *, as_json: bool) -> None:
    from deployments.cli.plan import plan_of

    steps = plan_of(spec)
    if as_json:
        print_json({"name": spec.name, "plan": [{"stage": step.stage, "does": step.does} for step in steps]})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("stage", "would", title=f"Plan for {spec.name}", title_justify="left")
    for step in steps:
        table.add_row(step.stage, step.does)
    Console().print(table)
    click.echo("Nothing was done. Without --dry-run, these stages run.")


def _show_result(result: DeployResult) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("stage", "verdict", "time", "key number", title=f"{result.name}", title_justify="left")
    for row in result.stages:
        colour = "red" if row.says_no else "green"
        verdict = f"[{colour}]{row.verdict}[/{colour}]" + (" (cached)" if row.cached else "")
        table.add_row(row.stage, verdict, f"{row.seconds:.1f} s", row.headline)
    console.print(table)
    _show_what_next(console, result)


def _show_what_next(console: Console, result: DeployResult) -> None:
    if result.endpoint is None:
        no = next((row for row in result.stages if row.says_no), None)
        if no is not None:
            console.print(f"{no.stage} says [red]{no.verdict}[/red]: {no.headline}")
            console.print(f"why: slipway kb records --stage {no.stage}", highlight=False)
        return
    console.print(f"endpoint    {result.endpoint}/v1/completions", highlight=False)
    console.print(f"release     {result.release}", highlight=False)
    console.print(f"completion  {result.completion!r}", highlight=False, markup=False)
    console.print(
        f"look next   slipway status {result.name} | slipway health {result.name} | "
        f"slipway logs {result.name} | slipway kb records",
        highlight=False,
    )
