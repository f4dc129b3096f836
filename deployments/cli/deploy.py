"""`slipway deploy`: the whole lifecycle from a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deployments.cli.main import print_json
from deployments.cli.params import GivenPath
from tasks.core.deployment import DeployResult, StageRow
from tasks.core.freshness import STAGES
from tasks.core.settings import Settings
from tasks.core.spec import DeploySpec, load_spec
from tasks.core.verdicts import StageName, says_no

if TYPE_CHECKING:
    from deployments.prefect_api import PrefectApi


_SHOWN = {"stage", "verdict", "cached", "seconds", "record", "headline", "log_tail", "reasons"}
"""Of a stage's row, for programs."""


@click.command()
@click.argument("spec_file", metavar="SPEC", type=GivenPath())
@click.option("--dry-run", is_flag=True, help="Print the plan; do nothing.")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a key of the spec.")
@click.option(
    "--fresh",
    metavar="[STAGE]",
    multiple=True,
    is_flag=False,
    flag_value="all",
    type=click.Choice(["all", *(stage.value for stage in STAGES)]),
    help="Measure STAGE again, whatever earlier records say; without STAGE, every stage. Goes after SPEC.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def deploy(
    spec_file: Path, dry_run: bool, overrides: tuple[str, ...], fresh: tuple[str, ...], as_json: bool
) -> None:
    """Take the model that SPEC names to a running, tuned service."""
    spec = load_spec(spec_file, overrides)
    anew = STAGES if "all" in fresh else tuple(map(StageName, fresh))
    if dry_run:
        _show_plan(spec, anew, as_json=as_json)
        return
    _check_engine(spec)
    _check_host(spec)
    result = _run(spec, anew, quiet=as_json)
    if as_json:
        print_json(
            {
                "name": result.name,
                "endpoint": result.endpoint,
                "release": result.release,
                "verdict": result.verdict,
                "stages": [row.model_dump(include=_SHOWN) for row in result.stages],
            }
        )
    else:
        _show_result(result)
    if says_no(StageName.LIFECYCLE, result.verdict):
        sys.exit(3)


def _check_engine(spec: DeploySpec) -> None:
    """Before a server is started for the run: refuse an engine that cannot be deployed yet, unless this host rules it
    out anyway, which is a verdict for the run to record."""
    from tasks.engines.deployable import refusal

    refused = refusal(spec)
    if refused is not None and not _judge(spec)[0]:
        raise refused


def _check_host(spec: DeploySpec) -> None:
    """Before a server is started for the run: check that whatever the target needs and the spec names exists."""
    from blocks.host.nvml import read_nvml
    from blocks.services.targets import check_target
    from flows.early_checks import check_inputs, prefect_knows_the_storage
    from tasks.engines.deployable import refusal, wants_absent_gpu

    check_target(spec.target)
    if refusal(spec) is None and not wants_absent_gpu(spec, len(read_nvml().gpus)):
        check_inputs(
            spec, Settings.load(), remote=not prefect_knows_the_storage()
        )  # otherwise the run answers with the verdict on this host


def _run(spec: DeploySpec, fresh: tuple[StageName, ...], *, quiet: bool) -> DeployResult:
    """Run the lifecycle in this process, on an existing Prefect API or one started for it."""
    from deployments.cli.progress import show_progress
    from deployments.cli.show import console
    from deployments.prefect_api import prefect_api
    from tasks.core.progress import listen, to_log

    with show_progress(console(stderr=quiet)) as listener:

        def show(stage: str, line: str) -> None:
            if stage != StageName.LIFECYCLE:  # repeats the stages' lines: for the log of the deploy's own run
                listener(stage, line)

        listen(show, to_log)
        with prefect_api(Settings.load()) as api:
            from prefect import tags

            from flows.deploy_model import deploy_model
            from flows.named_states import answer_of
            from flows.stale_runs import service_tag

            api.wait()
            # The run has the tag from its creation: the next run finds it even if it is killed at once.
            with api.quiet_runs(), tags(service_tag(spec.name)), _telling_where(api, spec.name):
                return answer_of(lambda: deploy_model(spec, fresh))


@contextlib.contextmanager
def _telling_where(api: PrefectApi, name: str) -> Iterator[None]:
    """At the end, in any case, print where the run and its log can be seen, if its server stays."""
    try:
        yield
    finally:
        from flows.stale_runs import newest_run_page

        if api.stays and (page := newest_run_page(name)) is not None:
            click.echo(f"run         {page}", err=True)


def _show_plan(spec: DeploySpec, fresh: tuple[StageName, ...], *, as_json: bool) -> None:
    from blocks.host.nvml import read_nvml
    from deployments.cli.changes import standings
    from deployments.cli.plan import plan_of, plan_without
    from tasks.engines.deployable import refusal, wants_absent_gpu

    refused = refusal(spec)
    blocked, judged = False, ""
    if refused is not None or wants_absent_gpu(spec, len(read_nvml().gpus)):
        blocked, judged = _judge(spec)
    ends = blocked or refused is not None
    steps = plan_without(judged, refused.what if refused else None) if ends else plan_of(spec)
    found = {} if ends else standings(spec, Settings.load(), fresh)
    if as_json:
        plan = [
            {
                "stage": step.stage,
                "does": step.does,
                **(asdict(found[step.stage]) if step.stage in found else {}),
            }
            for step in steps
        ]
        print_json({"name": spec.name, "plan": plan})
    else:
        from rich.markup import escape

        from deployments.cli.show import print_table

        rows = [(step.stage, escape(step.does)) for step in steps]
        print_table(("stage", "would"), rows, title=f"Plan for {spec.name}")
        for stage, one in found.items():
            click.echo(f"{stage} {'cached' if one.cached else 'would run'}: {one.why}")
        if not ends:
            click.echo("Nothing was done. Without --dry-run, these stages run.")
    if blocked:
        sys.exit(3)
    if refused is not None:
        if not as_json:
            raise refused
        sys.exit(2)


def _judge(spec: DeploySpec) -> tuple[bool, str]:
    """Whether this host rules the engine out, and the verdict with its reasons."""
    from deployments.cli.compat import judge_pins
    from tasks.core.verdicts import CompatibilityVerdict

    result = judge_pins(spec.engine, spec.target.value)
    said = [finding.message for finding in result.findings if finding.severity == result.verdict]
    reasons = ["; ".join(said)] if said else []
    return result.verdict is CompatibilityVerdict.BLOCK, ": ".join([result.verdict, *reasons])


def _show_result(result: DeployResult) -> None:
    from rich.markup import escape

    from deployments.cli.show import print_table

    rows = [(row.stage, _verdict(row), f"{row.seconds:.1f} s", escape(row.headline)) for row in result.stages]
    columns = ("stage", "verdict", "time", "key number")
    print_table(columns, rows, title=result.name, right=("time",), whole=("stage", "verdict"))
    _show_what_next(result)


def _verdict(row: StageRow) -> str:
    from deployments.cli.show import coloured

    return coloured(row.verdict) + (" (cached)" if row.cached else "")


def _show_what_next(result: DeployResult) -> None:
    no = next((row for row in result.stages if row.says_no), None)
    if no is not None:
        click.echo(f"{no.stage} says {no.verdict}: {no.headline}")
        for reason in no.reasons:
            if reason not in no.headline:
                click.echo(f"  - {reason}")
        for line in (no.log_tail or "").splitlines():
            click.echo(f"  | {line}")
        click.echo(
            f"look next   slipway kb records --stage {no.stage} | slipway up (its UI shows the run's log)"
        )
    if result.endpoint is None:
        return
    click.echo(f"endpoint    {result.endpoint}/v1/completions")
    click.echo(
        f"release     {result.release or 'the previous one: it completed a prompt after the rollback'}"
    )
    if result.completion:
        click.echo(f"completion  {result.completion!r}")
    verbs = (f"slipway {verb} {result.name}" for verb in ("status", "health", "logs"))
    click.echo(f"look next   {' | '.join(verbs)} | slipway kb records")
