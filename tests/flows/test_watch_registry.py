"""What `watch-registry` gathers and leaves: on a real folder registry and record store, with services' real documents."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import StateType
from releases import make_release

from blocks.storage.look_lease import only_look
from blocks.storage.record_store import open_record_store
from flows.deploy_model import deploy_model
from flows.watch_registry import watch_registry
from tasks.core.errors import MissingToolError, NotFoundError, RecordError, SlipwayError
from tasks.core.files import file_lock
from tasks.core.progress import listen
from tasks.core.records import Record, inputs_digest, new_record
from tasks.core.release import Release, ServiceFolder, ServiceState
from tasks.core.settings import Settings
from tasks.core.spec import DeploySpec
from tasks.core.verdicts import StageName
from tasks.lifecycle.models import deploy_inputs
from tasks.rollout.models import rollout_inputs

LEFT = "version 2 served and was rolled back: move the alias or deploy"


@dataclass
class Desk:
    """One alias per service, and what the operator and the deploys do to them. No engine runs."""

    home: Path
    gguf: Path
    events: list[dict[str, Any]] = field(default_factory=list)

    def move(self, version: str, name: str = "chat") -> None:
        """Write a version into the alias `models:/NAME@champion`."""
        alias = self.home / "registry" / name / "aliases" / "champion"
        alias.parent.mkdir(parents=True, exist_ok=True)
        alias.write_text(version)

    def release(self, version: str, name: str = "chat") -> Release:
        made = make_release(self.home / "bin" / "python", self.gguf, name)
        spec = made.spec.model_copy(update={"model": f"models:/{name}@champion"})
        return made.model_copy(update={"spec": spec, "model_version": version})

    def serve(self, release: Release) -> Release:
        """Write down what a rollout writes down, for a deploy or for a rollback."""
        folder = ServiceFolder(self.home / "services", release.name)
        state = folder.state()
        folder.release_file(release.id).parent.mkdir(parents=True, exist_ok=True)
        folder.release_file(release.id).write_text(release.model_dump_json(by_alias=True))
        now = ServiceState(
            name=release.name,
            target=release.target,
            host="127.0.0.1",
            port=8000,
            release=release.id,
            previous=(state.previous if state.release == release.id else state.release) if state else None,
            since=datetime.now(UTC),
        )
        folder.state_file.write_text(now.model_dump_json(by_alias=True))
        return release

    def brought_into_service(self, release: Release, by: str | None = None) -> None:
        """The same with the record of a rollout."""
        self.serve(release)
        store, inputs = open_record_store(Settings.load()), rollout_inputs(release)
        store.put(
            new_record(
                store=store,
                stage=StageName.ROLLOUT,
                subject=release.name,
                host_fingerprint="sha256:host",
                inputs_digest=inputs_digest(StageName.ROLLOUT, inputs),
                outcome="serving",
                seconds=1,
                evidence={"inputs": inputs, **({"by": by} if by else {})},
            )
        )

    def ended(self, spec: DeploySpec, version: str, outcome: str) -> None:
        """The record of a deploy, as `deploy-model` leaves it."""
        inputs = deploy_inputs(spec, version)
        record = new_record(
            stage=StageName.LIFECYCLE,
            subject=spec.name,
            host_fingerprint="sha256:host",
            inputs_digest=inputs_digest(StageName.LIFECYCLE, inputs),
            outcome=outcome,
            seconds=1,
            evidence={"inputs": inputs},
        )
        open_record_store(Settings.load()).put(record)

    def looks(self) -> list[Record]:
        """What was recorded of looks, oldest first."""
        return list(open_record_store(Settings.load()).list(StageName.REGISTRY))

    def look(self) -> str | None:
        """One look, for which each earlier event has waited long enough; the reason it recorded, if it did."""
        outcomes = watch_registry(grace_s=0)
        return outcomes[0].result.reason if outcomes else None


@pytest.fixture
def desk(slipway_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A service at version 1, which its alias names."""
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"weights")
    made = Desk(slipway_home, gguf)

    def emit(event: str, **said: Any) -> None:
        made.events.append({"event": event, "id": str(said["id"]), **said["payload"]})

    monkeypatch.setattr("flows.watch_registry.emit_event", emit)
    made.move("1")
    made.serve(made.release("1"))
    return made


def test_a_rollback_is_told_by_the_services_documents(desk: Desk) -> None:
    first = ServiceFolder(desk.home / "services", "chat").serving()[1]
    assert desk.look() is None
    desk.move("2")
    assert desk.look() == "the alias moved"
    desk.serve(desk.release("2"))  # killed before its record
    assert desk.look() == "the alias names the version that serves"
    desk.serve(first)  # slipway rollback chat
    assert desk.look() == LEFT
    assert [desk.look() for _ in range(3)] == [None] * 3
    assert [(event["version"], event["service"]) for event in desk.events] == [("2", "chat")]
    desk.move("1")
    assert desk.look() == "the alias names the version that serves"
    desk.move("2")
    assert desk.look() == "the alias moved"
    assert len({event["id"] for event in desk.events}) == 2


@pytest.mark.parametrize("days", [30, -30])
def test_a_rollback_is_told_by_records_where_the_clock_was_set(desk: Desk, days: int) -> None:
    """Records of rollouts are in the order of writing, whatever the releases' own times say."""
    first = ServiceFolder(desk.home / "services", "chat").serving()[1]
    second = desk.release("2")
    second = second.model_copy(update={"at": second.at + timedelta(days=days)})
    desk.brought_into_service(first)
    desk.move("2")
    assert desk.look() == "the alias moved"
    desk.brought_into_service(second)
    desk.move("1")
    assert desk.look() == "the alias moved", "a deploy is no rollback"
    desk.move("2")
    assert desk.look() == "the alias names the version that serves"
    desk.brought_into_service(first, by="rollback")
    assert desk.look() == LEFT


@pytest.mark.parametrize("by", ["start", "keep-running"])
def test_a_rollback_stays_one_when_the_service_is_brought_back(desk: Desk, by: str) -> None:
    """As after a reboot: what brings a service back decides nothing about its release."""
    first = ServiceFolder(desk.home / "services", "chat").serving()[1]
    desk.brought_into_service(first)
    desk.move("2")
    assert desk.look() == "the alias moved"
    desk.brought_into_service(desk.release("2"))
    assert desk.look() == "the alias names the version that serves"
    desk.brought_into_service(first, by="rollback")
    desk.brought_into_service(first, by=by)
    assert desk.look() == LEFT
    assert len(desk.events) == 1


def test_a_release_that_cannot_be_read_is_no_rollback(desk: Desk) -> None:
    """What served before may be a document of an older Slipway: it keeps nobody from following the alias."""
    folder = ServiceFolder(desk.home / "services", "chat")
    first = folder.serving()[1]
    desk.serve(desk.release("2"))
    folder.release_file(first.id).write_text('{"schema": "slipway.release/1"}')
    desk.move("3")
    assert desk.look() == "the alias moved"


def test_a_deploy_of_another_spec_is_no_answer_to_the_event(desk: Desk) -> None:
    _, serving = ServiceFolder(desk.home / "services", "chat").serving()
    trial = serving.spec.model_copy(
        update={"tuning": serving.spec.tuning.model_copy(update={"max_batch": 1})}
    )
    desk.move("2")
    desk.look()
    desk.ended(trial, "2", "refused")
    desk.ended(serving.spec, "7", "refused")
    assert desk.look() == "no deploy followed the last event"
    desk.ended(serving.spec, "2", "refused")
    assert desk.look() == "a deploy of version 2 was refused: move the alias or change the objectives"
    assert desk.look() is None


def test_deploys_that_cannot_begin_are_counted(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(_: object) -> None:
        raise MissingToolError("no Docker engine answers")

    monkeypatch.setattr("flows.deploy_model.check_target", down)
    _, serving = ServiceFolder(desk.home / "services", "chat").serving()
    desk.move("2")
    said = []
    for _ in range(4):
        said.append(desk.look())
        if said[-1] != "3 deploys of version 2 failed: find out why, then deploy":
            with pytest.raises(MissingToolError):
                deploy_model(serving.spec)
    assert said == [
        "the alias moved",
        "the last deploy failed",
        "the last deploy failed",
        "3 deploys of version 2 failed: find out why, then deploy",
    ]


def test_a_look_waits_for_a_deploy_that_runs(desk: Desk) -> None:
    desk.move("2")
    with file_lock(Settings.load().service_lease("chat"), wait=False, holder="the test"):
        assert desk.look() == "a deploy, a rollback or a recovery of this service is running"
        assert desk.look() is None
    assert desk.look() == "the alias moved"


def test_a_deploy_that_ends_during_the_look_is_not_asked_for_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.move("2")
    desk.look()
    spec = desk.release("2").spec

    def ends_now(_: Path) -> bool:
        desk.serve(desk.release("2"))
        desk.ended(spec, "2", "serving")
        return False

    monkeypatch.setattr("flows.watch_registry.is_held", ends_now)
    assert desk.look() == "the alias names the version that serves"
    assert len(desk.events) == 1


def cut_state(folder: ServiceFolder) -> None:
    folder.state_file.write_text('{"schema": "slipway.service/0"')


def cut_release(folder: ServiceFolder) -> None:
    folder.release_file(folder.serving()[1].id).write_text('{"schema": "slipway.release/1"}')


def no_release(folder: ServiceFolder) -> None:
    folder.release_file(folder.serving()[1].id).unlink()


def no_alias(folder: ServiceFolder) -> None:
    (folder.root.parents[1] / "registry" / folder.name / "aliases" / "champion").unlink()


def odd_state(folder: ServiceFolder) -> None:
    folder.state_file.unlink()
    folder.state_file.mkdir()


@pytest.mark.parametrize(
    ("ail", "fault"),
    [
        (cut_state, RecordError),
        (cut_release, RecordError),
        (no_release, NotFoundError),
        (no_alias, NotFoundError),
        (odd_state, RecordError),
    ],
)
def test_a_service_that_cannot_be_looked_at_hides_no_other(
    desk: Desk, ail: Callable[[ServiceFolder], None], fault: type[Exception]
) -> None:
    for name in ("a", "z"):
        desk.move("1", name)
        desk.serve(desk.release("1", name))
    ail(ServiceFolder(desk.home / "services", "a"))
    desk.move("2")
    desk.move("2", "z")
    heard: list[str] = []
    listen(lambda _, line: heard.append(line))
    with pytest.raises(fault):
        watch_registry()
    assert [event["service"] for event in desk.events] == ["chat", "z"]
    assert [line for line in heard if line.startswith("a could not be checked: ")]


def pipe_for_alias(folder: ServiceFolder) -> None:
    no_alias(folder)
    os.mkfifo(folder.root.parents[1] / "registry" / folder.name / "aliases" / "champion")


def pipe_for_state(folder: ServiceFolder) -> None:
    folder.state_file.unlink()
    os.mkfifo(folder.state_file)


@pytest.mark.parametrize("ail", [pipe_for_alias, pipe_for_state])
def test_a_service_whose_look_hangs_blinds_no_other_and_is_seen_again_once_mended(
    desk: Desk, ail: Callable[[ServiceFolder], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe that nobody writes to stands for a mount that hangs."""
    monkeypatch.setattr("flows.watch_registry.SERVICE_DEADLINE_S", 1.0)
    for name in ("a", "z"):
        desk.move("1", name)
        desk.serve(desk.release("1", name))
    hanging = ServiceFolder(desk.home / "services", "a")
    state = hanging.state_file.read_text()
    ail(hanging)
    for name in ("chat", "z"):
        desk.move("2", name)
    for _ in range(2):
        with pytest.raises(SlipwayError, match=r"a pipe, not a file|did not answer in time"):
            watch_registry()
    assert {event["service"] for event in desk.events} == {"chat", "z"}
    for pipe in desk.home.rglob("*"):
        if pipe.is_fifo():
            pipe.unlink()
    hanging.state_file.write_text(state)
    desk.move("2", "a")
    watch_registry()
    assert "a" in {event["service"] for event in desk.events}


def test_a_look_is_cancelled_while_another_one_is_young(desk: Desk) -> None:
    desk.move("2")
    with only_look(desk.home / "leases" / "registry-look", 1e9):
        state = watch_registry(return_state=True)
    assert state.type == StateType.CANCELLED
    assert not desk.events
    assert desk.look() == "the alias moved"


def test_a_service_that_stands_still_leaves_one_record(desk: Desk) -> None:
    assert [desk.look() for _ in range(3)] == [None] * 3
    assert not desk.looks()
    _, serving = ServiceFolder(desk.home / "services", "chat").serving()
    desk.move("2")
    desk.look()
    desk.ended(serving.spec, "2", "refused")
    for _ in range(5):
        desk.look()
    assert [record.evidence["result"]["reason"] for record in desk.looks()] == [
        "the alias moved",
        "a deploy of version 2 was refused: move the alias or change the objectives",
    ]


def test_records_that_do_not_concern_a_look_are_not_read(desk: Desk) -> None:
    _, serving = ServiceFolder(desk.home / "services", "chat").serving()
    desk.ended(serving.spec, "7", "refused")
    desk.move("9", "other")
    desk.serve(desk.release("1", "other"))
    desk.look()
    for path in (desk.home / "records").glob("*/*.json"):
        path.write_text("would be told of if it were read")
    ServiceFolder(desk.home / "services", "other").state_file.unlink()
    heard: list[str] = []
    listen(lambda _, line: heard.append(line))
    desk.move("2")
    desk.look()
    assert not [line for line in heard if "left out" in line]


def test_a_look_that_another_version_of_slipway_recorded_is_passed_over(desk: Desk) -> None:
    desk.move("2")
    desk.look()
    (path,) = (desk.home / "records" / "registry").glob("*.json")
    path.write_text(path.read_text().replace('"wanted_version"', '"wanted"'))
    assert desk.look() == "the alias moved"
