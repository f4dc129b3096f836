"""Compare the model registry's aliases with what serves, and ask for a redeploy where they differ."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated
from uuid import UUID

from prefect import flow
from prefect.events import emit_event
from pydantic import Field

from blocks.model_registry import resolve
from blocks.record_store import open_record_store
from flows.recording import Outcome, run_stage
from tasks.core.errors import BusyError, SlipwayError
from tasks.core.files import file_lock
from tasks.core.progress import say
from tasks.core.records import Record, RecordStore
from tasks.core.release import Release, ServiceFolder
from tasks.core.settings import Settings
from tasks.core.verdicts import StageName, says_no
from tasks.registry import report
from tasks.registry.models import EVENT, Announcement, Attempt, Look, RegistryResult
from tasks.registry.plan import GRACE, judge


@flow(name="watch-registry")
def watch_registry(
    grace_s: Annotated[float, Field(ge=0)] = GRACE.total_seconds(),
) -> list[Outcome[RegistryResult]]:
    """Look once at every service whose model is named by an alias (`models:/NAME@ALIAS`).

    Where the alias has moved, one event `model-registry.version.promoted` is emitted, which starts
    `redeploy-model`. Every look compares anew, so a lost event is made good by the next look.

    Args:
        grace_s: how long after its event a redeploy may start before the event counts as lost.
    """
    settings = Settings.load()
    outcomes: list[Outcome[RegistryResult]] = []
    faults: list[SlipwayError] = []
    for release in _watched(settings):
        try:
            if resolve(release.spec.model, settings).version == release.model_version:
                say(StageName.REGISTRY, f"{release.name} serves what {release.spec.model} names")
                continue  # the usual answer of every five minutes: nothing to record
            outcomes.append(_look_at(release, settings, timedelta(seconds=grace_s)))
        except SlipwayError as error:
            faults.append(error)  # one service's registry is no reason to leave the others unwatched
    if faults:
        raise faults[0]
    return outcomes


def _watched(settings: Settings) -> list[Release]:
    """What serves by an alias. A service that was stopped on purpose is left alone."""
    folders = (ServiceFolder(settings.services, path.name) for path in sorted(settings.services.glob("*")))
    serving = (folder.release(state.release) for folder in folders if (state := folder.state()))
    return [release for release in serving if release and release.spec.model.startswith("models:/")]


def _look_at(release: Release, settings: Settings, grace: timedelta) -> Outcome[RegistryResult]:
    def work() -> RegistryResult:
        result = judge(_gather(release, settings, open_record_store(settings)), datetime.now(UTC), grace)
        if result.announcement is not None:
            _emit(result.announcement)
        return result

    return run_stage(
        StageName.REGISTRY,
        subject=release.name,
        inputs={"service": release.name, "model": release.spec.model},
        result_type=RegistryResult,
        report=report,
        work=work,
    )


def _gather(release: Release, settings: Settings, store: RecordStore) -> Look:
    looks = [
        found for found in store.list(StageName.REGISTRY) if found.subject == release.name and found.good
    ]
    announced = [made for found in looks if (made := found.evidence["result"].get("announcement"))]
    deploys = [found for found in store.list(StageName.LIFECYCLE) if found.subject == release.name]
    return Look(
        service=release.name,
        model=release.spec.model,
        wanted_version=resolve(release.spec.model, settings).version or "",
        serving_version=release.model_version,
        deploying=_is_deploying(settings.service_lease(release.name)),
        announced=tuple(Announcement.model_validate(made) for made in announced),
        attempts=tuple(
            Attempt(at=found.at, outcome=found.outcome, said_no=_said_no(found)) for found in deploys
        ),
    )


def _said_no(deploy: Record) -> bool:
    return says_no(StageName.LIFECYCLE, deploy.outcome)


def _is_deploying(lease: Path) -> bool:
    try:
        with file_lock(lease, wait=False, holder="the service"):
            return False
    except BusyError:
        return True


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
