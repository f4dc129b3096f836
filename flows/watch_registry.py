"""Compare the model registry's aliases with what serves, and ask for a redeploy if they differ."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated
from uuid import UUID

from prefect.events import emit_event
from pydantic import Field, ValidationError

from blocks.prefect.artifacts import flow_recorder
from blocks.prefect.flows import flow, show_state
from blocks.prefect.quiet_runs import NOTHING_NEW, forget_quiet_runs
from blocks.processes.deadline import await_answer, start
from blocks.storage.look_lease import only_look
from blocks.storage.record_store import open_record_store
from blocks.storage.sources import resolve
from tasks.core.errors import BusyError, RecordError, StageCancelledError
from tasks.core.files import is_held
from tasks.core.progress import say
from tasks.core.records import Record, RecordStore, inputs_digest
from tasks.core.release import Release, ServiceFolder, ServiceState
from tasks.core.settings import Settings
from tasks.core.sources import REGISTRY, scheme_of
from tasks.core.stage import Outcome, run_stage
from tasks.core.verdicts import RegistryVerdict, RolloutVerdict, StageName, says_no
from tasks.lifecycle.models import deploy_inputs
from tasks.registry import report
from tasks.registry.models import EVENT, Announcement, Attempt, Look, PastLook, RegistryResult, Rollback
from tasks.registry.plan import GRACE, is_news, judge
from tasks.rollout.models import ROLLBACK, rollout_inputs
from tasks.rollout.recovery.apply import should_run

SERVICE_DEADLINE_S = 60.0
"""In which everything must be read that the look at one service needs; all services are read at once."""

LOOK_DEADLINE_S = 240.0
"""Limit for checking all services. The next check comes after five minutes, and kills one that hangs."""

_MOST_NAMES = 3
"""Names that a list of runs has room for."""


def _run_name() -> str:
    """`watch the registry for chat and coder`: the services that run now."""
    names = [folder.name for folder in should_run(Settings.load().services)]
    told = " and ".join(names) if len(names) <= _MOST_NAMES else f"{len(names)} services"
    return f"watch the registry for {told or 'no service'}"


@flow(name="watch-registry", flow_run_name=_run_name, timeout_seconds=LOOK_DEADLINE_S)
def watch_registry(
    grace_s: Annotated[float, Field(ge=0)] = GRACE.total_seconds(),
) -> list[Outcome[RegistryResult]]:
    """Look once at every service whose model is named by an alias (`models:/NAME@ALIAS`).

    Where the alias has moved, one event `model-registry.version.promoted` is emitted, which starts
    `redeploy-model`. Every look compares again, so a later look makes up for a lost event. The answers are those
    that a record was made of: of looks that announced something, or found another thing than the last record.

    If the registry, folder or records of a service do not answer in time, that is a fault, and the other services are
    still checked. If another check is running, this one is cancelled; a check that hangs is killed.

    Args:
        grace_s: how long after its event a redeploy may start before the event counts as lost; doubles with each
            lost event.
    """
    settings = Settings.load()
    try:
        with only_look(settings.leases / "registry-look", LOOK_DEADLINE_S):
            return _look_at_all(settings, timedelta(seconds=grace_s))
    except BusyError as busy:
        raise StageCancelledError(busy.what) from busy


def _look_at_all(settings: Settings, grace: timedelta) -> list[Outcome[RegistryResult]]:
    outcomes: list[Outcome[RegistryResult]] = []
    faults: list[Exception] = []
    deadline = time.monotonic() + SERVICE_DEADLINE_S
    names = [folder.name for folder in should_run(settings.services)]
    looks = {name: start(partial(_find, name, settings)) for name in names}
    for name, found in looks.items():
        try:
            look = await_answer(found, deadline, f"the registry, the folder or the records of {name}")
            outcome = _act_on(look, grace) if look else None
        except Exception as error:  # noqa: BLE001 - whatever ails one service leaves none of the others unwatched
            say(StageName.REGISTRY, f"{name} could not be checked: {error}")
            faults.append(error)
        else:
            outcomes += [outcome] if outcome else []
    forget_quiet_runs(StageName.REGISTRY)
    if faults:
        raise faults[0]
    _show(outcomes)
    return outcomes


def _show(outcomes: list[Outcome[RegistryResult]]) -> None:
    moved = [one for one in outcomes if one.verdict == RegistryVerdict.MOVED]
    if not outcomes:
        show_state(NOTHING_NEW, "every alias names what it named at the last look")
    else:
        name = (RegistryVerdict.MOVED if moved else RegistryVerdict.CURRENT).capitalize()
        show_state(name, "; ".join(one.headline for one in moved or outcomes))


def _find(name: str, settings: Settings) -> Look | None:
    """All that is read for the look at one service; None for one without an alias."""
    folder = ServiceFolder(settings.services, name)
    if folder.state() is None:
        return None  # stopped since the names were read
    _, release = folder.serving()
    return _gather(folder, release, settings) if scheme_of(release.spec.model) == REGISTRY else None


def _act_on(look: Look, grace: timedelta) -> Outcome[RegistryResult] | None:
    """None for a look that found nothing new."""
    result = judge(look, datetime.now(UTC), grace)
    if not is_news(result, look):
        say(StageName.REGISTRY, f"{look.service}: {report.headline(result)}: {result.reason}")
        return None

    def work() -> RegistryResult:
        if result.announcement is not None:
            _emit(result.announcement)
        return result

    return run_stage(
        flow_recorder(),
        StageName.REGISTRY,
        subject=look.service,
        inputs=_inputs(look.service, look.model),
        result_type=RegistryResult,
        report=report,
        work=work,
    )


def _gather(folder: ServiceFolder, release: Release, settings: Settings) -> Look:
    """What the decision needs. If the alias names the serving release, as it nearly always does, it is one record."""
    model = release.spec.model
    store = open_record_store(settings)
    wanted = resolve(model, settings).version or ""
    moved = wanted != release.model_version
    look = Look(
        service=folder.name,
        model=model,
        wanted_version=wanted,
        serving_version=release.model_version,
        past=_past(store, folder.name, model, newest=None if moved else 1),
    )
    if not moved:
        return look
    deploying = is_held(settings.service_lease(folder.name))
    # Read once more: what a deploy brought into service that ended in between is not to be asked for again.
    state, release = folder.serving()
    return look.model_copy(
        update={
            "serving_version": release.model_version,
            "deploying": deploying,
            "attempts": _attempts(store, release, wanted),
            "rollback": _rollback(store, folder, state, release),
        }
    )


def _inputs(service: str, model: str) -> dict[str, str]:
    return {"service": service, "model": model}


def _past(store: RecordStore, service: str, model: str, newest: int | None) -> tuple[PastLook, ...]:
    digest = inputs_digest(StageName.REGISTRY, _inputs(service, model))
    records = store.with_inputs(StageName.REGISTRY, digest, newest)
    return tuple(past for found in records if (past := _past_look(found)))


def _past_look(record: Record) -> PastLook | None:
    """None for a look that failed, or that another version of Slipway recorded."""
    try:
        result = RegistryResult.model_validate(record.evidence["result"])
    except (KeyError, ValidationError):
        return None
    return PastLook(
        at=record.at,
        record=record.id,
        wanted_version=result.wanted_version,
        serving_version=result.serving_version,
        reason=result.reason,
        announcement=result.announcement,
    )


def _attempts(store: RecordStore, release: Release, version: str) -> tuple[Attempt, ...]:
    """Deploys of this very spec at that version: records of trials with another spec are not even read."""
    digest = inputs_digest(StageName.LIFECYCLE, deploy_inputs(release.spec, version))
    return tuple(
        Attempt(
            at=found.at,
            record=found.id,
            version=found.evidence["inputs"]["model_version"],
            outcome=found.outcome,
            said_no=says_no(StageName.LIFECYCLE, found.outcome),
        )
        for found in store.with_inputs(StageName.LIFECYCLE, digest)
    )


def _rollback(
    store: RecordStore, folder: ServiceFolder, state: ServiceState, release: Release
) -> Rollback | None:
    """The rollback by which `release` came to serve again: the release that was left was deployed after it.

    The records of their rollouts tell. Where one was killed before its record, the releases' own times do.
    """
    try:
        left = folder.release(state.previous) if state.previous else None
    except RecordError:
        return None  # of an older Slipway, say, and then older than what serves
    if left is None or left.model_version is None or left.spec.model != release.spec.model:
        return None
    (deployed, back), (left_deployed, _) = _rollouts(store, release), _rollouts(store, left)
    newer = left_deployed > deployed if left_deployed and deployed else left.at > release.at
    if not newer:
        return None
    record = back if back > left_deployed else ""
    return Rollback(at=state.since, record=record, version=left.model_version)


def _rollouts(store: RecordStore, release: Release) -> tuple[str, str]:
    """Ids of the records by which a release last came into service: by a deploy, and by a rollback."""
    last: dict[str | None, str] = {}
    digest = inputs_digest(StageName.ROLLOUT, rollout_inputs(release))
    for record in store.with_inputs(StageName.ROLLOUT, digest):
        if record.outcome == RolloutVerdict.SERVING:
            # What `start` or `keep-running` brought back after a reboot was decided before it.
            last[record.evidence.get("by")] = record.id
    return last.get(None, ""), last.get(ROLLBACK, "")


def _emit(announcement: Announcement) -> None:
    """The id is derived from version and attempt: emitting it twice starts one redeploy."""
    emit_event(
        EVENT,
        resource={
            "prefect.resource.id": f"model-registry.{announcement.service}",
            "prefect.resource.name": announcement.model,
        },
        payload={
            "service": announcement.service,
            "model": announcement.model,
            "version": announcement.version,
        },
        id=UUID(announcement.event_id),
    )
