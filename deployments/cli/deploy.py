"""`slipway deploy`: the whole lifecycle from a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextvars import copy_context
from dataclasses import asdict
from pathlib import Path

import click

from blocks.host.nvml import read_nvml
from blocks.prefect.service_tag import service_tag
from blocks.services.early_checks import check_inputs, check_keys, prefect_knows_the_storage
from deployments.cli.changes import standings
from deployments.cli.main import print_json
from deployments.cli.params import GivenPath
from deployments.cli.show import coloured, console, echo_log, plain, print_table
from deployments.prefect_api import PrefectApi, needs_own_server, no_api, prefect_api
from tasks.core.api_keys import block_name
from tasks.core.errors import ModelError, NetworkError
from tasks.core.freshness import STAGES
from tasks.core.model_task import GENERATES, Purpose, Task
from tasks.core.progress import listen, to_log
from tasks.core.settings import Settings
from tasks.core.sources import GGUF, local_folder
from tasks.core.spec import DeploySpec, load_spec
from tasks.core.verdicts import CompatibilityVerdict, StageName, says_no
from tasks.engines.arguments import check_arguments
from tasks.lifecycle.models import DeployResult, StageRow
from tasks.lifecycle.plan import plan_of, plan_without, refusal, wants_absent_gpu, warnings_of

_SHOWN = {"stage", "verdict", "cached", "seconds", "record", "headline", "log_tail", "reasons"}
"""The fields of a stage's row that programs get."""


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
    help="Run STAGE again even if an earlier record could be used; without STAGE, every stage. Goes after SPEC.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def deploy(
    spec_file: Path, dry_run: bool, overrides: tuple[str, ...], fresh: tuple[str, ...], as_json: bool
) -> None:
    """Take the model that SPEC names to a running, tuned service."""
    spec = load_spec(spec_file, overrides)
    check_arguments(spec.engine, spec.engine_args)
    check_keys(spec, prefect=False)
    warnings = warnings_of(spec)
    anew = STAGES if "all" in fresh else tuple(map(StageName, fresh))
    if dry_run:
        _warn(warnings)
        _show_plan(spec, anew, as_json=as_json)
        return
    _check_engine(spec)
    warnings += _check_host(spec)
    _warn(warnings)
    result = _run(spec, anew, quiet=as_json)
    if as_json:
        print_json(
            {
                "name": result.name,
                "endpoint": result.endpoint,
                "release": result.release,
                "verdict": result.verdict,
                "warnings": warnings,
                "stages": [row.model_dump(include=_SHOWN) for row in result.stages],
            }
        )
    else:
        _show_result(result)
        if spec.serving.api_key and result.endpoint:
            click.echo(f"key         send Authorization: Bearer KEY, with a key in {spec.serving.api_key}")
    if says_no(StageName.LIFECYCLE, result.verdict):
        sys.exit(3)


def _warn(warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)


def _check_engine(spec: DeploySpec) -> None:
    """Before a server is started for the run: refuse an engine that cannot be deployed yet, unless this host rules it
    out anyway, which is a verdict for the run to record."""
    refused = refusal(spec)
    if refused is not None and not _judge(spec)[0]:
        raise refused


def _check_host(spec: DeploySpec) -> tuple[str, ...]:
    """Before a server is started for the run: check that whatever the target needs and the spec names exists."""
    from blocks.services.targets import check_target

    check_target(spec.target)
    if refusal(spec) is None and not wants_absent_gpu(spec, len(read_nvml().gpus)):
        return check_inputs(spec, Settings.load(), remote=not prefect_knows_the_storage(), prefect=False)
    return ()  # the run answers with the verdict on this host


def _run(spec: DeploySpec, fresh: tuple[StageName, ...], *, quiet: bool) -> DeployResult:
    """Run the lifecycle in this process, on an existing Prefect API or one started for it."""
    from blocks.expectations.fact_contract import FactContract
    from blocks.processes.deadline import start
    from deployments.cli.progress import show_progress

    with show_progress(console(stderr=quiet)) as listener:

        def show(stage: str, line: str) -> None:
            if stage != StageName.LIFECYCLE:  # repeats the stages' lines: for the log of the deploy's own run
                listener(stage, line)

        settings = Settings.load()
        listen(show)
        result = _answer_from_records(spec, fresh, settings)
        if result is not None:
            return result
        listen(show, to_log)
        with prefect_api(settings) as api:
            if not api.stays:
                # Takes seconds in a new home, as does the server's start. The flow meets whatever is wrong with it.
                start(FactContract(settings).check)
            from prefect import tags

            from flows.deploy_model import deploy_model

            api.wait()
            # The run has the tag from its creation: killed at once, it is still found by the next one.
            with api.quiet_runs(), tags(service_tag(spec.name)), _telling_where(api, spec.name):
                return deploy_model(spec, fresh)


def _answer_from_records(
    spec: DeploySpec, fresh: tuple[StageName, ...], settings: Settings
) -> DeployResult | None:
    """Deploy without Prefect a release that serves already; None if there is more to do, or a server to show it.

    A server that this command started would end with it, and so would all that it had to show.
    """
    from blocks.prefect.database import has_open_run
    from blocks.prefect.server import keeps_own_database

    if prefect_knows_the_storage() or block_name(spec.serving.api_key) or not needs_own_server(settings):
        return None
    if not keeps_own_database(settings) or has_open_run(settings, service_tag(spec.name)):
        return None  # a run that was killed is ended by a server
    if not all(one.cached for one in standings(spec, settings, fresh).values()):
        return None
    from tasks.core.stage import WorkNeededError, records_only

    with no_api(settings), records_only(), contextlib.suppress(WorkNeededError):
        from flows.deploy_model import deploy_model

        # In a context of its own: what cancels this attempt does not cancel the deploy that follows.
        return copy_context().run(deploy_model.plain, spec, fresh)
    return None


@contextlib.contextmanager
def _telling_where(api: PrefectApi, name: str) -> Iterator[None]:
    """At the end, in any case, print where the run and its log can be seen, if its server stays."""
    try:
        yield
    finally:
        from blocks.prefect.stale_runs import newest_run_page

        if api.stays and (page := newest_run_page(name)) is not None:
            click.echo(f"run         {page}", err=True)


def _show_plan(spec: DeploySpec, fresh: tuple[StageName, ...], *, as_json: bool) -> None:
    refused = refusal(spec)
    blocked, judged = False, ""
    if refused is not None or wants_absent_gpu(spec, len(read_nvml().gpus)):
        blocked, judged = _judge(spec)
    ends = blocked or refused is not None
    steps = (
        plan_without(judged, refused.what if refused else None)
        if ends
        else plan_of(spec, *_describe_model(spec))
    )
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
        print_json({"name": spec.name, "warnings": warnings_of(spec), "plan": plan})
    else:
        rows = [(step.stage, plain(step.does)) for step in steps]
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


def _describe_model(spec: DeploySpec) -> tuple[str, str | None]:
    """What is known about the model without copying it, and the quantization of one that is served as it comes.

    Raises whatever a deploy would refuse the model for. If its place cannot be read now, a warning says so.
    """
    remote = local_folder(spec.model) is None
    if remote and prefect_knows_the_storage():
        return _not_judged(spec, "its credentials are in a Prefect block")
    try:
        return _described(spec)
    except NetworkError as error:
        if not remote:
            raise
        return _not_judged(spec, str(error))


def _not_judged(spec: DeploySpec, why: str) -> tuple[str, None]:
    _warn((f"whether the model can be deployed is not known: {why}",))
    return spec.model, None


def _described(spec: DeploySpec) -> tuple[str, str | None]:
    """The same of a model whose files can be read."""
    from blocks.services.early_checks import check_code, check_gguf_model, check_purpose, check_weights
    from blocks.services.source_checks import check_headers, check_source
    from blocks.storage.model_source import check_level
    from blocks.storage.sources import open_model, resolve
    from tasks.core.model_shape import parse_model_config
    from tasks.engines.families import shape_findings
    from tasks.staging.plan import CONFIG_FILE
    from tasks.staging.source import pin

    folder = local_folder(spec.model)
    if folder is not None and not folder.is_dir() and folder.suffix != GGUF:
        raise ModelError(f"no model folder {folder}", fix="correct `model:` in the spec")
    settings = Settings.load()
    place = resolve(spec.model, settings).source
    source = open_model(place, spec.tuning.candidates, endpoint=settings.s3_endpoint)
    if (model := check_gguf_model(spec, source)) is not None:
        serves = _serves(check_purpose(spec, source, model))
        return f"{source.name} ({model.describe()}{serves})", model.stored_as
    pinned = pin(source)
    if at := local_folder(place):
        check_level(at, [file.path for file in pinned.files])
    weights, remark = check_weights(spec, source)
    purpose = check_purpose(spec, source, None)
    shape = check_source(spec, pinned, purpose or GENERATES)
    _warn(tuple(filter(None, (remark, check_code(spec, source)))))
    _warn(check_headers(spec, pinned))
    config = parse_model_config(pinned.read_whole(CONFIG_FILE), CONFIG_FILE)
    described = "; ".join((shape.describe() + _serves(purpose), *shape_findings(config, shape)))
    return f"{spec.model if folder else source.name} ({described})", weights.describe() if weights else None


def _serves(purpose: Purpose | None) -> str:
    if purpose is None or purpose.task is Task.GENERATE:
        return ""
    return f", for {purpose.task}" + (f" with {purpose.pooling} pooling" if purpose.pooling else "")


def _judge(spec: DeploySpec) -> tuple[bool, str]:
    """Whether this host rules the engine out, and the verdict with its reasons."""
    from deployments.cli.compat_check import judge_pins

    result = judge_pins(spec.engine, spec.target.value, spec.engine_version)
    said = [finding.message for finding in result.findings if finding.severity == result.verdict]
    reasons = ["; ".join(said)] if said else []
    return result.verdict is CompatibilityVerdict.BLOCK, ": ".join([result.verdict, *reasons])


def _show_result(result: DeployResult) -> None:
    rows = [(row.stage, _verdict(row), f"{row.seconds:.1f} s", plain(row.headline)) for row in result.stages]
    columns = ("stage", "verdict", "time", "key number")
    print_table(columns, rows, title=result.name, right=("time",), whole=("stage", "verdict"))
    _show_what_next(result)


def _verdict(row: StageRow) -> str:
    return coloured(row.verdict) + (" (cached)" if row.cached else "")


def _show_what_next(result: DeployResult) -> None:
    no = next((row for row in result.stages if row.says_no), None)
    if no is not None:
        click.echo(f"{no.stage} says {no.verdict}: {no.headline}")
        for reason in no.reasons:
            if reason not in no.headline:
                click.echo(f"  - {reason}")
        echo_log(no.log_tail)
        click.echo(
            f"look next   slipway kb records --stage {no.stage} | slipway up (its UI shows the logs of later runs)"
        )
    if result.endpoint is None:
        return
    click.echo(f"endpoint    {result.url}")
    click.echo(
        f"release     {result.release or 'the previous one: it completed a prompt after the rollback'}"
    )
    if result.completion:
        click.echo(f"completion  {result.completion!r}")
    verbs = (f"slipway {verb} {result.name}" for verb in ("status", "health", "logs"))
    click.echo(f"look next   {' | '.join(verbs)} | slipway kb records")
