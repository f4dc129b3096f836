"""`slipway start`: bring services back from the disk, without Prefect, registry or network."""

from __future__ import annotations

from typing import Any

import click

from deployments.cli.main import print_json, report_error
from deployments.cli.service import folder_named
from deployments.cli.show import echo_log
from tasks.core.digests import short
from tasks.core.errors import SlipwayError, WrongUseError
from tasks.core.leases import bring_back
from tasks.core.release import ServiceFolder
from tasks.core.settings import Settings
from tasks.core.stage import StageRun, failures_recorded
from tasks.core.verdicts import StageName, says_no
from tasks.rollout.damage import set_damage_aside
from tasks.rollout.models import START, RolloutAction, RolloutResult
from tasks.rollout.recovery.apply import should_run, start_service, target_of
from tasks.rollout.report import headline


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "every", is_flag=True, help="All services that should run.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def start(ctx: click.Context, names: tuple[str, ...], every: bool, as_json: bool) -> None:
    """Start each service NAME with its last release, at the same address.

    For services that were stopped, or whose processes ended, for example in a reboot. A running service is
    left alone.
    """
    settings = Settings.load()
    if bool(names) == every:
        raise WrongUseError("name the services to start, or give --all", fix="list them: slipway status")
    folders = should_run(settings.services) if every else [folder_named(settings, name) for name in names]
    rows: list[dict[str, Any]] = []
    code = 0
    for folder in folders:  # a service that cannot be started must not keep the others from starting
        try:
            row = _start(folder, settings)
        except SlipwayError as error:
            row = {"name": folder.name, **error.as_json()}
            code = max(code, error.exit_code) if code != 3 else code
            if not as_json:
                report_error(error, as_json=False)
        else:
            if says_no(StageName.ROLLOUT, row["verdict"]):
                code = 3
            if not as_json:
                _print(row)
        rows.append(row)
    if as_json:
        print_json({"services": rows})
    elif not rows:
        click.echo("no service should run: slipway status shows them all")
    if code:
        ctx.exit(code)


def _start(folder: ServiceFolder, settings: Settings) -> dict[str, Any]:
    from blocks.host.prefetch import Prefetcher
    from blocks.host.recorder import open_recorder
    from blocks.services.door import open_service, read_keys
    from blocks.services.rollouts import run_rollout
    from blocks.services.sampler import see_to_sampler
    from blocks.services.targets import open_target

    recorder = open_recorder(settings)
    run = StageRun(recorder, StageName.ROLLOUT, folder.name, {"service": folder.name})
    with bring_back(settings, folder.name, by="slipway start"):
        set_damage_aside(folder)
        with failures_recorded(run), open_target(target_of(folder), folder, settings) as target:
            ran = target.running()
            result = start_service(
                folder, target, open_service(folder), Prefetcher(StageName.ROLLOUT), read_keys
            )
        kept = ran is not None and result.action in (RolloutAction.NOTHING, RolloutAction.ADOPT)
        if kept:
            see_to_sampler(folder)
            record = None
        else:
            inputs = {"service": folder.name, "release": result.release}
            record = run_rollout(recorder, folder, inputs, lambda: result, by=START, began=run.began).record
    return {**result.model_dump(mode="json"), "served_already": kept, "record": record}


def _print(row: dict[str, Any]) -> None:
    release = short(row["release"])
    if row["verdict"] == "serving":
        click.echo(f"{row['name']} serves {release} at {row['endpoint']}{' already' * row['served_already']}")
        return
    result = RolloutResult.model_validate({key: row[key] for key in RolloutResult.model_fields})
    click.echo(f"{row['name']} {release}: {headline(result)}")
    echo_log(row["log_tail"], err=True)
