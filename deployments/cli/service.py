"""`slipway status | logs | stop | rollback`: services, without Prefect."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import click

from blocks.engine.api import EngineApi
from blocks.services.targets import open_target
from deployments.cli.main import print_json
from deployments.cli.params import LARGEST_COUNT, Count
from deployments.cli.show import coloured, echo_log, plain, print_facts, print_table
from tasks.core.digests import short
from tasks.core.errors import MissingToolError, NotFoundError, RecordError, RolloutError, WrongUseError
from tasks.core.leases import end_service, hold_service
from tasks.core.release import Release, ServiceFolder, ServiceState, read_release
from tasks.core.settings import Settings
from tasks.core.spec_sections import Rollout
from tasks.core.stage import Outcome, StageRun, failures_recorded
from tasks.core.verdicts import StageName
from tasks.lifecycle.plan import open_to_others
from tasks.rollout.damage import set_damage_aside
from tasks.rollout.history import find_release
from tasks.rollout.models import ROLLBACK, RolloutResult, Running, rollout_inputs
from tasks.rollout.plan import release_before
from tasks.rollout.recovery.apply import target_of

_COLUMNS = (
    "name", "state", "endpoint", "target", "release", "model", "format", "batch", "since", "restarts",
)  # fmt: skip
_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.command()
@click.argument("name", required=False)
@_AS_JSON
def status(name: str | None, as_json: bool) -> None:
    """Show services and what they serve: all of them, or NAME."""
    settings = Settings.load()
    folders = [folder_named(settings, name)] if name else _folders(settings)
    rows = [_status_of(folder, settings) if name else _row_of(folder, settings) for folder in folders]
    if as_json:
        print_json(rows[0] if name else {"services": rows})
    elif name:
        _print_one(rows[0])
    elif rows:
        _print_table(rows)
    else:
        click.echo("no services yet: slipway deploy SPEC.yaml")


@click.command()
@click.argument("name")
@click.option(
    "-n", "--lines", default=50, show_default=True, type=Count(1, LARGEST_COUNT), help="Number of lines."
)
@click.option("--requests", is_flag=True, help="Show the proxy's timers of the last requests instead.")
@_AS_JSON
def logs(name: str, lines: int, requests: bool, as_json: bool) -> None:
    """Show the end of NAME's log."""
    from blocks.services.haproxy import last_requests

    settings = Settings.load()
    folder = folder_named(settings, name)
    with open_target(target_of(folder), folder, settings) as target:
        text = last_requests(folder, target.running(), lines) if requests else target.log_tail(lines)
    if as_json:
        print_json({"name": name, "lines": text.splitlines()})
    else:
        click.echo(text)


@click.command()
@click.argument("name")
@_AS_JSON
def stop(name: str, as_json: bool) -> None:
    """End the service NAME, once its requests are answered. `slipway start NAME` brings it back."""
    from blocks.host.recorder import open_recorder
    from blocks.services.sampler import stop_sampler
    from tasks.rollout.apply import stop_service

    settings = Settings.load()
    folder = folder_named(settings, name)
    with ExitStack() as stack:
        stack.enter_context(end_service(settings, name))
        set_damage_aside(folder)
        target = stack.enter_context(open_target(target_of(folder), folder, settings))
        state = folder.state()
        inputs = {"stop": name, "release": state.release if state else None}
        run = StageRun(open_recorder(settings), StageName.ROLLOUT, name, inputs)
        stack.enter_context(failures_recorded(run))
        stopped = stop_service(folder, target, drain_s=_drain_s(folder, state))
        stop_sampler(folder)
        record = run.record("stopped").id if stopped else None
    if as_json:
        print_json({"name": name, "stopped": stopped, "record": record})
    else:
        click.echo(f"{name} is stopped" if stopped else f"{name} was stopped already")


@click.command()
@click.argument("name")
@click.option("--to", "wanted", metavar="RELEASE", help="A kept release, by the first digits of its id.")
@_AS_JSON
@click.pass_context
def rollback(ctx: click.Context, name: str, wanted: str | None, as_json: bool) -> None:
    """Go back to the previous release of NAME; a second rollback returns to this one."""
    from blocks.host.prefetch import Prefetcher
    from blocks.host.recorder import open_recorder
    from blocks.services.door import open_service, read_keys
    from blocks.services.rollouts import run_rollout
    from tasks.rollout.apply import roll_out

    settings = Settings.load()
    folder = folder_named(settings, name)
    with hold_service(settings, name):
        set_damage_aside(folder)
        with open_target(target_of(folder), folder, settings) as target:
            running = target.running()
            release = _kept_release(folder, running, wanted) if wanted else _release_before(folder, running)
            outcome = run_rollout(
                open_recorder(settings),
                folder,
                rollout_inputs(release),
                lambda: roll_out(
                    release,
                    folder,
                    target,
                    open_service(folder),
                    Prefetcher(StageName.ROLLOUT),
                    read_keys=read_keys,
                    reopen=False,
                ),
                by=ROLLBACK,
            )
    if as_json:
        print_json({**outcome.result.model_dump(mode="json"), "record": outcome.record})
    else:
        _print_rollout(outcome)
    if outcome.says_no:
        ctx.exit(3)


def _folders(settings: Settings) -> list[ServiceFolder]:
    signs = ("releases/*.json", "current.json", "last.json", "supervisor.json", "proxy/current", "damaged")
    found = {
        path.relative_to(settings.services).parts[0]
        for sign in signs
        for path in settings.services.glob(f"*/{sign}")
    }
    return [ServiceFolder(settings.services, name) for name in sorted(found)]


def folder_named(settings: Settings, name: str) -> ServiceFolder:
    """The service of that name. Raises a `NotFoundError` that lists the known ones."""
    folders = {folder.name: folder for folder in _folders(settings)}
    if name not in folders:
        known = f"known: {', '.join(folders)}" if folders else "there are none yet: slipway deploy SPEC.yaml"
        raise NotFoundError(f"there is no service {name}", fix=known)
    return folders[name]


def _latest_release(folder: ServiceFolder) -> Release:
    """The release that serves, or the last one written. Raises `RecordError` if none can be read."""
    state = folder.state()
    if state is not None and (release := folder.release(state.release)) is not None:
        return release
    documents = sorted(folder.root.glob("releases/*.json"), key=lambda path: path.stat().st_mtime)
    if not documents:
        raise RecordError(f"{folder.name} has no release that can be read", fix="deploy its spec again")
    return read_release(documents[-1])


def _drain_s(folder: ServiceFolder, state: ServiceState | None) -> float:
    """How long a stop waits for requests, s; the default if the release cannot be read."""
    try:
        release = folder.release(state.release) if state else None
    except RecordError:
        return Rollout().drain_s
    return release.spec.rollout.drain_s if release else 0


def _kept_release(folder: ServiceFolder, running: Running | None, wanted: str) -> Release:
    """The release of that id. Raises `NotFoundError` or `WrongUseError`."""
    _serving(folder, running)
    return find_release(wanted, folder.releases(), folder.name)


def _serving(folder: ServiceFolder, running: Running | None) -> tuple[ServiceState | None, str]:
    """What is written down, and the release that serves. Raises `WrongUseError` for a stopped service."""
    # A running service may have lost its document; a stopped one keeps the copy, but there is nothing to roll back.
    state = folder.last() if running else folder.state()
    serving = running or state
    if serving is None:
        raise WrongUseError(
            f"{folder.name} is stopped: there is nothing to roll back", fix=f"slipway start {folder.name}"
        )
    return state, serving.release


def _release_before(folder: ServiceFolder, running: Running | None) -> Release:
    """The release before the one that serves, even if a killed rollout did not write it down."""
    state, serving = _serving(folder, running)
    before = release_before(state, running)
    if before is None:
        raise WrongUseError(
            f"{folder.name} has no release before {short(serving)}",
            fix="deploy the spec that you want",
        )
    release = folder.release(before)
    if release is None:
        raise RolloutError(
            f"the document of release {short(before)} is gone from {folder.root / 'releases'}",
            fix="deploy the spec of that release again",
        )
    return release


def services_down(settings: Settings) -> list[dict[str, Any]]:
    """Rows of the services that should serve but do not."""
    rows = (_row_of(folder, settings) for folder in _folders(settings))
    return [row for row in rows if row["state"] == "down"]


def _row_of(folder: ServiceFolder, settings: Settings) -> dict[str, Any]:
    """One service's row; unreadable documents must not hide the other services."""
    try:
        return _status_of(folder, settings)
    except RecordError as error:
        return {"name": folder.name, "state": "unreadable", "error": str(error)}


def _status_of(folder: ServiceFolder, settings: Settings) -> dict[str, Any]:
    state, release = folder.state(), _latest_release(folder)
    running: Running | None = None
    condition = "stopped"
    try:
        with open_target(target_of(folder), folder, settings) as target:
            running = target.running()
    except MissingToolError:
        condition = "unknown"
    else:
        condition = _condition(running, state)
    if running is not None and running.release != release.id:
        release = folder.release(running.release) or release
    return {
        "name": folder.name,
        "state": condition,
        "endpoint": running.endpoint if running else state.endpoint if state else None,
        "target": release.target,
        "engine": f"{release.engine} {release.engine_version}",
        "release": release.id,
        "previous": release_before(state, running),
        "model": release.model_source,
        "model_digest": release.model_digest,
        "format": release.candidate_format,
        "batch": release.config.batch,
        "environment": release.environment_digest,
        "image": release.image,
        "since": state.since.isoformat() if state else None,
        "restarts": running.restarts if running else None,
        "open_requests": running.open_requests if running else None,
        "metrics": running.metrics if running else None,
        "locked": running.locked if running else None,
        "warning": open_to_others(running.host) if running and not running.locked else None,
        "way_out": f"slipway start {folder.name}" if condition in ("down", "stopped") else None,
    }


def _condition(running: Running | None, state: ServiceState | None) -> str:
    """up: it answers `/health`; starting: its engine runs; down: it should serve and does not."""
    if running is None:
        return "down" if state else "stopped"
    with EngineApi(running.endpoint, timeout_s=2) as api:
        if api.ready():
            return "up"
    return "starting" if running.up else "down"


def _print_rollout(outcome: Outcome[RolloutResult]) -> None:
    result = outcome.result
    click.echo(
        f"{result.name} {short(result.release)}: {result.verdict.replace('_', ' ')}: {outcome.headline}"
    )
    echo_log(result.log_tail, err=True)


def _print_table(rows: list[dict[str, Any]]) -> None:
    def cells(row: dict[str, Any]) -> list[str]:
        since = (row.get("since") or "")[:19].replace("T", " ")
        shown = {**row, "release": short(row.get("release") or ""), "since": since}
        texts = {column: plain(str(shown.get(column) or "")) for column in _COLUMNS}
        texts["restarts"] = "" if row.get("restarts") is None else str(row["restarts"])
        texts["state"] = coloured(row["state"])
        return [texts[column] for column in _COLUMNS]

    whole = [column for column in _COLUMNS if column != "model"]
    spare = ("since", "release", "target", "model")
    print_table(_COLUMNS, map(cells, rows), right=("batch", "restarts"), whole=whole, spare=spare)
    for row in rows:
        if error := row.get("error"):
            click.echo(f"{row['name']}: {error}", err=True)
        elif row["state"] == "down":
            click.echo(f"{row['name']} is down; bring it back: {row['way_out']}")
        if warning := row.get("warning"):
            click.echo(f"warning: {row['name']}: {warning}", err=True)


def _print_one(row: dict[str, Any]) -> None:
    facts = [(key.replace("_", " "), value) for key, value in row.items() if value is not None]
    # Full digests, for looking them up; the table of all services shortens them.
    print_facts((key, coloured(value) if key == "state" else plain(str(value))) for key, value in facts)
