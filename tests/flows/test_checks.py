"""The check flows against a service that really serves, and a real Prefect API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort
from prefect.states import State
from releases import make_release
from waiting import wait_until

from blocks.engine.api import EngineApi
from blocks.services.sampler import sampler_pid, stop_sampler
from blocks.services.supervisor import SupervisedService
from blocks.storage.record_store import FolderRecordStore
from flows.check_health import check_health
from flows.check_leaks import check_leaks
from tasks.core.errors import NotFoundError
from tasks.core.release import Release, ServiceFolder
from tasks.core.verdicts import StageName
from tasks.leaks.apply import damage, read_runs
from tasks.rollout.apply import roll_out, stop_service

pytestmark = pytest.mark.engine


@pytest.fixture
def release(engine_python: Path, random_ggufs: tuple[Path, Path]) -> Release:
    made = make_release(engine_python, random_ggufs[0])
    checks = made.spec.checks.model_copy(update={"sample_period_s": 0.05, "confirm_after_s": 1.0})
    return made.model_copy(update={"spec": made.spec.model_copy(update={"checks": checks})})


@pytest.fixture
def service(release: Release, slipway_home: Path) -> Iterator[ServiceFolder]:
    folder = ServiceFolder(slipway_home / "services", "chat")
    with SupervisedService(folder) as target:
        try:
            roll_out(release, folder, target, EngineApi)
            yield folder
        finally:
            stop_sampler(folder)
            stop_service(folder, target, drain_s=0)


def artifact(key: str) -> str:
    """The newest artifact of that key."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])), sort=ArtifactSort.CREATED_DESC
        )
    return str(found[0].data)


def test_a_health_check_with_its_contract(service: ServiceFolder, slipway_home: Path) -> None:
    first = check_health("chat")
    assert (first.verdict, first.result.contract) == ("healthy", None)
    assert first.result.completion
    second = check_health("chat", contract=True)
    assert second.verdict == "healthy"
    assert second.result.contract is not None
    assert (second.result.contract.rows, second.result.contract.breaches) == (2, ())
    records = FolderRecordStore(slipway_home / "records").list(StageName.HEALTH)
    assert [record.id for record in records] == [first.record, second.record]
    assert records[1].consulted == (first.record,)
    text = artifact("health-chat")
    assert "# Health: healthy" in text
    assert "## Contract on 2 samples" in text
    assert second.record in text


def test_a_leak_check_starts_the_sampler_and_judges_what_is_there(service: ServiceFolder) -> None:
    first = check_leaks("chat")
    assert first.verdict == "none"
    assert sampler_pid(service) is not None
    wait_until(
        lambda: any(len(run.t_s) > 60 for run in read_runs(service.samples)), "a minute of samples, scaled"
    )
    second = check_leaks("chat")
    assert second.result.samples > 60
    assert second.result.looks
    assert "data:image/svg+xml" in artifact("leaks-chat")


def test_a_damaged_sample_file_ends_no_check_and_is_made_whole(service: ServiceFolder) -> None:
    """As a full disk left it behind a sampler of before: without a header, and without an end."""
    check_leaks("chat")
    wait_until(lambda: any(len(run.t_s) > 2 for run in read_runs(service.samples)), "samples are taken")
    previous = sampler_pid(service)
    (path,) = service.samples.glob("*.csv")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    assert damage(service.samples) is not None
    assert check_leaks("chat").verdict == "none"
    assert sampler_pid(service) not in (None, previous)
    wait_until(lambda: damage(service.samples) is None, "the file is whole again")
    (run,) = read_runs(service.samples)
    assert len(run.t_s) > 2


def test_nightly_checks_look_at_every_service(service: ServiceFolder, slipway_home: Path) -> None:
    assert check_health(contract=False).verdict == "healthy"
    unreadable = slipway_home / "services" / "other" / "current.json"
    unreadable.parent.mkdir()
    unreadable.write_text((service.root / "current.json").read_text().replace('"chat"', '"other"'))
    with pytest.raises(NotFoundError, match="the release of other is gone"):
        check_health()
    records = FolderRecordStore(slipway_home / "records").list(StageName.HEALTH)
    assert [record.subject for record in records] == ["chat", "chat"]


def test_without_services_there_is_nothing_to_check(slipway_home: Path) -> None:
    state: State[None] = check_leaks(return_state=True)  # type: ignore[assignment]
    assert (state.name, state.is_completed()) == ("Nothing to check", True)
