"""`slipway start`: services whose processes were killed, or that were stopped, serve again from the disk alone."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from releases import make_release
from slipway_command import SlipwayCommand
from strays import engines_of, processes_of, supervisors_of
from waiting import wait_until

from blocks.engine.api import EngineApi
from blocks.services.sampler import sample_service, sampler_pid
from blocks.services.supervisor import SupervisedService
from blocks.storage.record_store import FolderRecordStore
from tasks.core.digests import short
from tasks.core.release import Release, ServiceFolder
from tasks.core.verdicts import RolloutVerdict
from tasks.rollout.apply import roll_out
from tasks.rollout.models import RolloutResult

pytestmark = pytest.mark.engine

Services = Callable[[str], ServiceFolder]


@pytest.fixture
def slipway(capsys: pytest.CaptureFixture[str], slipway_home: Path) -> SlipwayCommand:
    return SlipwayCommand(capsys)


@pytest.fixture
def ggufs(random_ggufs: tuple[Path, Path], slipway_home: Path) -> tuple[Path, Path]:
    """Candidates below the test's home; the folder that the spec names as the model's source is gone."""
    folder = slipway_home / "candidates"
    slipway_home.mkdir(mode=0o700)
    folder.mkdir()
    return tuple(Path(shutil.copy(file, folder)) for file in random_ggufs)  # type: ignore[return-value]


@pytest.fixture
def make(engine_python: Path, ggufs: tuple[Path, Path], tmp_path: Path) -> Callable[..., Release]:
    def release(name: str = "chat", *, model: int = 0) -> Release:
        made = make_release(engine_python, ggufs[model], name)
        spec = made.spec.model_copy(update={"model": f"file:{tmp_path / 'gone'}"})
        return made.model_copy(update={"spec": spec, "model_source": spec.model})

    return release


def bring(release: Release, folder: ServiceFolder) -> RolloutResult:
    with SupervisedService(folder) as target:
        result = roll_out(release, folder, target, EngineApi)
    if result.verdict is RolloutVerdict.SERVING:
        sample_service(folder, *folder.serving())
    return result


def kill_all(home: Path) -> None:
    """As a reboot does: everything at once, and nothing is told."""
    for process in processes_of(home):
        with contextlib.suppress(psutil.NoSuchProcess):  # an engine ends with its supervisor
            process.kill()
    wait_until(lambda: not processes_of(home), "everything is dead")


def complete(endpoint: str, model: str = "chat") -> str:
    with EngineApi(endpoint) as api:
        return api.complete(model, "The", 4).text


def test_after_a_reboot_every_service_serves_the_same_release_at_the_same_port(
    make: Callable[..., Release],
    services: Services,
    slipway_home: Path,
    slipway: SlipwayCommand,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("SLIPWAY_REGISTRY", "s3://nowhere/at-all")
    bring(make(model=1), services("chat"))
    wanted = {
        "chat": bring(make(), services("chat")),
        "other": bring(make("other", model=1), services("other")),
    }
    bring(make("idle"), services("idle"))
    slipway("stop", "idle")
    kill_all(slipway_home)
    assert [row["state"] for row in slipway.json("status")["services"]] == ["down", "stopped", "down"]
    assert "chat is down; bring it back: slipway start chat" in slipway("status")
    rows = {row["name"]: row for row in slipway.json("start", "--all")["services"]}
    assert rows.keys() == wanted.keys()
    for name, before in wanted.items():
        now = slipway.json("status", name)
        assert (now["state"], now["release"], now["endpoint"], now["previous"]) == (
            "up", before.release, before.endpoint, before.previous,
        )  # fmt: skip
        assert complete(before.endpoint or "", name)
        assert sampler_pid(services(name)) is not None
        record = FolderRecordStore(slipway_home / "records").get(rows[name]["record"])
        assert (record.stage, record.subject, record.outcome) == ("rollout", name, "serving")
        assert record.evidence["by"] == "start"


def test_start_twice_does_nothing_and_says_so(
    make: Callable[..., Release], services: Services, slipway: SlipwayCommand, slipway_home: Path
) -> None:
    result = bring(make(), services("chat"))
    before = processes_of(slipway_home)
    expected = f"chat serves {short(result.release)} at {result.endpoint} already\n"
    assert slipway("start", "chat") == expected
    assert slipway.json("start", "--all")["services"][0]["record"] is None
    assert processes_of(slipway_home) == before


def test_a_stopped_service_is_started_where_it_was(
    make: Callable[..., Release], services: Services, slipway: SlipwayCommand
) -> None:
    first = bring(make(model=1), services("chat"))
    second = bring(make(), services("chat"))
    slipway("stop", "chat")
    assert slipway.json("status", "chat")["way_out"] == "slipway start chat"
    assert slipway("start", "--all") == "no service should run: slipway status shows them all\n"
    assert slipway("start", "chat") == f"chat serves {short(second.release)} at {second.endpoint}\n"
    assert slipway.json("rollback", "chat")["serving"] == first.release


@pytest.mark.parametrize("victim", ["supervisor", "engine", "sampler"])
def test_one_killed_process_is_brought_back(
    victim: str, make: Callable[..., Release], services: Services, slipway: SlipwayCommand, slipway_home: Path
) -> None:
    folder = services("chat")
    result = bring(make(), folder)
    sampler = sampler_pid(folder)
    assert sampler is not None
    victims = {
        "supervisor": supervisors_of(slipway_home)[0].pid,
        "engine": engines_of(slipway_home)[0].pid,
        "sampler": sampler,
    }
    os.kill(victims[victim], signal.SIGKILL)
    wait_until(lambda: victims[victim] not in [one.pid for one in processes_of(slipway_home)], "it is dead")
    slipway("start", "chat")
    assert complete(result.endpoint or "")
    assert sampler_pid(folder) is not None


def test_a_candidate_that_changed_is_not_started(
    make: Callable[..., Release], services: Services, slipway: SlipwayCommand, slipway_home: Path
) -> None:
    bring(make(), services("chat"))
    release = make()
    kill_all(slipway_home)
    data = bytearray(release.launch.model_file.read_bytes())
    data[-100] ^= 0xFF
    release.launch.model_file.write_bytes(data)
    slipway("start", "chat", code=1)
    assert "has changed since it was measured" in slipway.err
    assert "fix: remove it, then deploy again" in slipway.err
    assert processes_of(slipway_home) == []


def test_a_port_that_is_taken_meanwhile_is_named(
    make: Callable[..., Release], services: Services, slipway: SlipwayCommand, slipway_home: Path
) -> None:
    endpoint = bring(make(), services("chat")).endpoint or ""
    kill_all(slipway_home)
    port = int(endpoint.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        slipway("start", "chat", code=1)
        assert f"port {port} of 127.0.0.1 is taken by" in slipway.err
    slipway("start", "chat")
    assert complete(endpoint)


def test_one_that_cannot_be_started_keeps_none_of_the_others_from_it(
    make: Callable[..., Release], services: Services, slipway: SlipwayCommand, slipway_home: Path
) -> None:
    bring(make("a"), services("a"))
    good = bring(make("b", model=1), services("b"))
    kill_all(slipway_home)
    make("a").launch.model_file.unlink()
    rows = slipway.json("start", "--all", code=1)["services"]
    assert [row.get("error", row.get("verdict")) for row in rows] == ["ModelError", "serving"]
    assert complete(good.endpoint or "", "b")


def test_names_or_all_are_asked_for(slipway: SlipwayCommand) -> None:
    for arguments in ([], ["chat", "--all"]):
        slipway("start", *arguments, code=2)
        assert slipway.err == (
            "error: name the services to start, or give --all\n  fix: list them: slipway status\n"
        )
    slipway("start", "chat", code=2)
    assert slipway.err.startswith("error: there is no service chat\n")


def test_a_rollback_that_finds_the_previous_release_dead_brings_it_back_and_says_what_it_measured(
    make: Callable[..., Release],
    services: Services,
    slipway_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The supervisor dies in the middle of a rollout: with it dies what served before."""
    folder = services("chat")
    previous = bring(make(), folder)
    start = SupervisedService.start

    def dies(self: SupervisedService, release: Release) -> object:
        if release.id != previous.release:
            supervisors_of(slipway_home)[0].kill()
        return start(self, release)

    monkeypatch.setattr(SupervisedService, "start", dies)
    result = bring(make(model=1), folder)
    assert (result.verdict, result.serving, result.answers) == (
        RolloutVerdict.ROLLED_BACK, previous.release, True,
    )  # fmt: skip
    assert complete(previous.endpoint or "")
