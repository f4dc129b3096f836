"""The look of each minute, against a real Prefect server and with the real engine."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from inline_snapshot import snapshot
from prefect import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from releases import make_release
from strays import processes_of, supervisors_of
from waiting import wait_until

from blocks.engine.api import EngineApi
from blocks.services.sampler import sample_service, sampler_pid, stop_sampler
from blocks.services.supervisor import SupervisedService
from blocks.storage.record_store import FolderRecordStore
from flows.deploy_model import deploy_model
from flows.keep_running import keep_running
from tasks.core import files
from tasks.core.errors import ModelError
from tasks.core.files import file_lock
from tasks.core.records import Record
from tasks.core.release import Release, ServiceFolder
from tasks.core.settings import Settings
from tasks.rollout.apply import roll_out, stop_service
from tasks.rollout.damage import set_damage_aside
from tasks.rollout.recovery.apply import read_past
from tasks.rollout.recovery.models import Past

pytestmark = [pytest.mark.server, pytest.mark.engine]


@pytest.fixture
def release(engine_python: Path, random_ggufs: tuple[Path, Path], slipway_home: Path) -> Release:
    slipway_home.mkdir(mode=0o700)
    return make_release(engine_python, Path(shutil.copy(random_ggufs[0], slipway_home / "model.gguf")))


@pytest.fixture
def service(release: Release, slipway_home: Path) -> Iterator[ServiceFolder]:
    folder = ServiceFolder(slipway_home / "services", "chat")
    with SupervisedService(folder) as target:
        roll_out(release, folder, target, EngineApi)
    sample_service(folder, *folder.serving())
    try:
        yield folder
    finally:
        with SupervisedService(folder) as target:
            target.stop(drain_s=0)
        stop_sampler(folder)
        wait_until(lambda: not processes_of(slipway_home), "nothing is left")


def kill_all(home: Path) -> None:
    for process in processes_of(home):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    wait_until(lambda: not processes_of(home), "everything is dead")


def looks() -> list[str | None]:
    """Names of the states of all looks that Prefect shows."""
    of_this_flow = FlowFilter(name=FlowFilterName(any_=["keep-running"]))
    with get_client(sync_client=True) as client:
        return [run.state_name for run in client.read_flow_runs(flow_filter=of_this_flow)]


def rollouts(home: Path) -> list[Record]:
    return list(FolderRecordStore(home / "records").list())


def test_where_all_is_well_nothing_is_done_or_recorded(
    service: ServiceFolder, slipway_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = processes_of(slipway_home)
    taken: list[str] = []
    opened = files._open_lock

    def opens(path: Path) -> int:
        taken.append(path.name)
        return opened(path)

    monkeypatch.setattr(files, "_open_lock", opens)
    assert keep_running() == []
    assert "Nothing new" in looks()
    assert processes_of(slipway_home) == before
    assert rollouts(slipway_home) == []
    assert "service-chat" not in taken, "a look holds no lease, and so fails no command"


def test_what_was_killed_is_brought_back_and_recorded(
    service: ServiceFolder, release: Release, slipway_home: Path
) -> None:
    state = service.state()
    assert state is not None
    kill_all(slipway_home)
    (outcome,) = keep_running()
    assert (outcome.verdict, outcome.result.serving, outcome.result.endpoint) == (
        "serving", release.id, state.endpoint,
    )  # fmt: skip
    with EngineApi(state.endpoint) as api:
        assert api.complete("chat", "The", 2).text
    assert sampler_pid(service) is not None
    (record,) = rollouts(slipway_home)
    assert (record.outcome, record.evidence["by"]) == ("serving", "keep-running")
    assert "Brought back" in looks()
    assert keep_running() == []


def test_a_killed_sampler_is_started_again(service: ServiceFolder) -> None:
    sampler = sampler_pid(service)
    assert sampler is not None
    psutil.Process(sampler).kill()
    wait_until(lambda: sampler_pid(service) is None, "it is dead")
    keep_running()
    assert sampler_pid(service) is not None


def test_a_service_that_was_stopped_or_is_worked_on_is_left_alone(
    service: ServiceFolder, slipway_home: Path
) -> None:
    kill_all(slipway_home)
    with file_lock(Settings.load().service_lease("chat"), wait=False, holder="chat"):
        assert keep_running() == []
    assert processes_of(slipway_home) == []
    with SupervisedService(service) as target:
        stop_service(service, target, drain_s=0)
    assert keep_running() == []
    assert processes_of(slipway_home) == []


def test_a_stop_ends_what_brings_the_service_back(
    service: ServiceFolder, slipway_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an engine that would load for minutes."""
    monkeypatch.setattr(EngineApi, "ready", lambda _: False)
    kill_all(slipway_home)
    settings = Settings.load()
    with file_lock(settings.leases / "stop-chat", wait=True, holder="a stop", shared=True):
        assert keep_running() == []
    assert rollouts(slipway_home) == []
    assert read_past(service) == Past()
    with SupervisedService(service) as target:
        assert stop_service(service, target, drain_s=0)
    stop_sampler(service)
    assert processes_of(slipway_home) == []


def test_a_service_of_an_earlier_version_gets_the_copy_of_its_state(service: ServiceFolder) -> None:
    service.last_file.unlink()
    keep_running()
    assert service.last_file.read_bytes() == service.state_file.read_bytes()


def test_a_service_that_cannot_come_back_is_tried_less_and_less_and_recorded_once(
    service: ServiceFolder, release: Release, slipway_home: Path
) -> None:
    kill_all(slipway_home)
    moved = release.launch.model_file.rename(slipway_home / "away.gguf")
    failures = []
    for _ in range(7):
        keep_running()
        failures.append(read_past(service).failures)
    assert failures == [1, 1, 2, 2, 2, 2, 3]
    assert {"Still down", "Waiting"} <= set(looks())
    (record,) = rollouts(slipway_home)
    assert (record.outcome, record.evidence["error"]["fix"]) == (
        "fault", snapshot("deploy again to recreate it"),
    )  # fmt: skip
    moved.rename(release.launch.model_file)
    while read_past(service).failures:
        keep_running()
    assert [record.outcome for record in rollouts(slipway_home)] == ["fault", "serving"]


def another_service(home: Path, name: str) -> ServiceFolder:
    """In a container, by its documents; nothing of it runs."""
    folder = ServiceFolder(home / "services", name)
    folder.root.mkdir()
    chat = json.loads(ServiceFolder(home / "services", "chat").state_file.read_bytes())
    folder.state_file.write_text(json.dumps({**chat, "name": name, "target": "docker"}))
    return folder


def test_a_docker_that_does_not_answer_is_told_once_and_blinds_no_other(
    service: ServiceFolder, slipway_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = another_service(slipway_home, "blind")
    kill_all(slipway_home)
    monkeypatch.setattr("blocks.docker.docker_engine._PING_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{silent.getsockname()[1]}")
        (outcome,) = keep_running()
        assert outcome.result.serving
        assert "Could not look" in looks()
        keep_running()
    assert looks().count("Could not look") == 1
    assert "Waiting" in looks()
    (told,) = [record for record in rollouts(slipway_home) if record.subject == "blind"]
    assert "none answers at tcp://" in told.evidence["error"]["what"]
    blind.state_file.unlink()


def test_a_look_that_hangs_blinds_no_other(
    service: ServiceFolder, slipway_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = another_service(slipway_home, "a-hangs")
    kill_all(slipway_home)
    mended = threading.Event()

    def hang(folder: ServiceFolder) -> None:
        if folder.name == hanging.name:
            mended.wait()
        set_damage_aside(folder)

    monkeypatch.setattr("flows.keep_running.set_damage_aside", hang)
    monkeypatch.setattr("flows.keep_running.LOOK_DEADLINE_S", 3.0)
    (outcome,) = keep_running()
    assert outcome.result.serving
    (told,) = [record for record in rollouts(slipway_home) if record.subject == hanging.name]
    assert "the look at a-hangs did not answer in time" in told.evidence["error"]["what"]
    hanging.state_file.unlink()
    mended.set()


def test_a_stopped_supervisor_is_replaced(
    service: ServiceFolder, slipway_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (supervisor,) = supervisors_of(slipway_home)
    supervisor.suspend()
    with monkeypatch.context() as patched:
        patched.setattr("blocks.services.supervisor._ANSWER_S", 0.5)
        assert keep_running() == []
    assert "Could not look" in looks()
    monkeypatch.setattr("blocks.services.supervisor._ANSWER_S", 5.0)
    (outcome,) = keep_running()
    assert outcome.result.serving
    assert supervisor.pid not in [one.pid for one in supervisors_of(slipway_home)]
    with EngineApi(outcome.result.endpoint or "") as api:
        assert api.complete("chat", "The", 2).text


def test_a_disk_that_fails_while_a_service_is_brought_back_is_a_failure_like_others(
    service: ServiceFolder, slipway_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(service.root))

    kill_all(slipway_home)
    with monkeypatch.context() as patched:
        patched.setattr("flows.keep_running.start_service", full)
        keep_running()
    assert read_past(service).failures == 1
    assert "Still down" in looks()
    (record,) = rollouts(slipway_home)
    assert record.evidence["error"]["error"] == "DiskFullError"


def test_a_model_that_is_a_pipe_keeps_no_look_waiting(
    service: ServiceFolder, release: Release, slipway_home: Path
) -> None:
    kill_all(slipway_home)
    release.launch.model_file.unlink()
    os.mkfifo(release.launch.model_file)
    keep_running()
    (record,) = rollouts(slipway_home)
    assert "is not a file" in record.evidence["error"]["what"]


def test_a_deploy_brings_its_service_back_before_it_tunes_and_before_it_rolls_out(
    service: ServiceFolder, release: Release, slipway_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the lease for hours: nothing else can."""
    served: list[str | None] = []

    def note() -> None:
        with SupervisedService(service) as target:
            running = target.running()
        served.append(running.release if running else None)

    def tune(*_: object) -> tuple[None, None]:
        note()
        kill_all(slipway_home)
        return None, None

    def make_no_release(*_: object) -> Release:
        note()
        raise ModelError("enough seen")

    monkeypatch.setattr("flows.deploy_model.check_inputs", lambda *_: ())
    monkeypatch.setattr("flows.deploy_model._Lifecycle._prepare", lambda *_: (None, None))
    monkeypatch.setattr("flows.deploy_model._Lifecycle._tune", tune)
    monkeypatch.setattr("flows.deploy_model._Lifecycle._release", make_no_release)
    kill_all(slipway_home)
    with pytest.raises(ModelError, match="enough seen"):
        deploy_model(release.spec)
    assert served == [release.id, release.id]


def test_a_deploy_goes_on_where_its_service_cannot_be_brought_back(
    service: ServiceFolder, release: Release, slipway_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tune(*_: object) -> None:
        raise ModelError("it tunes")

    monkeypatch.setattr("flows.deploy_model.check_inputs", lambda *_: ())
    monkeypatch.setattr("flows.deploy_model._Lifecycle._prepare", lambda *_: (None, None))
    monkeypatch.setattr("flows.deploy_model._Lifecycle._tune", tune)
    kill_all(slipway_home)
    service.release_file(release.id).unlink()
    with pytest.raises(ModelError, match="it tunes"):
        deploy_model(release.spec)
