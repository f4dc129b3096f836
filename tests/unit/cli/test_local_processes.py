"""Which running processes are the local server and worker of a home. They have the commands and wait, no more."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blocks.prefect.server import _WITHOUT_SCHEDULING, api_url, server_command
from blocks.processes.started_process import StartedProcess
from deployments import local
from deployments.local_processes import WORKER, local_processes
from deployments.local_state import LocalState, read_local_state, state_file, write_local_state
from tasks.core.settings import Settings

PORT = 4242
WAIT = "print(flush=True); input()"
Start = Callable[..., "StartedProcess"]


@pytest.fixture
def settings(slipway_home: Path) -> Settings:
    slipway_home.mkdir()
    return Settings.load()


@pytest.fixture
def start(slipway_home: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts a `server` or a `worker` with variables of its own; at the end they are gone."""
    modules = tmp_path / "modules"
    room = modules / "blocks" / "prefect"
    room.mkdir(parents=True)
    for package in (room, room.parent):
        (package / "__init__.py").touch()
    (room / "local_api.py").write_text(WAIT)
    prefect = tmp_path / "prefect"
    prefect.write_text(WAIT)
    commands = {
        "server": server_command(PORT),
        "worker": (sys.executable, str(prefect), "worker", "start", "--pool", "local", "--name", WORKER),
        "another worker": (sys.executable, str(prefect), "worker", "start", "--name", "mine"),
        "another program": (sys.executable, str(prefect)),
    }
    children: list[subprocess.Popen[bytes]] = []

    def started(kind: str, home: Path = slipway_home, **more: str) -> StartedProcess:
        environ = {
            **os.environ, "PYTHONPATH": str(modules), "SLIPWAY_HOME": str(home), "PREFECT_API_URL": api_url(PORT), **more,
        }  # fmt: skip
        pipe = subprocess.PIPE
        child = subprocess.Popen(commands[kind], stdin=pipe, stdout=pipe, env=environ, start_new_session=True)
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"\n"
        return StartedProcess.of(child.pid)

    yield started
    for child in children:
        child.kill()
        child.communicate()


def test_a_homes_own_are_found_by_any_of_its_names(settings: Settings, start: Start, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(settings.home)
    expected = [("server", start("server")), ("worker", start("worker", tmp_path / "link"))]
    found = local_processes(settings.home)
    assert [(local.name, local.process) for local in found] == expected
    assert {local.api_url for local in found} == {api_url(PORT)}


def test_what_is_another_homes_or_one_commands_own_is_left_alone(
    settings: Settings, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    strange = [
        start("server", tmp_path / "other"),
        start("server", tmp_path / "gone"),
        start("server", **_WITHOUT_SCHEDULING),
        start("worker", tmp_path / "other"),
        start("another worker"),
        start("another program"),
    ]
    assert local_processes(settings.home) == []
    assert read_local_state(settings) is None
    assert local.stop(settings) == []
    assert all(process.find() for process in strange)


def test_the_oldest_server_and_its_worker_are_taken_over(settings: Settings, start: Start) -> None:
    server = start("server")
    start("worker", PREFECT_API_URL=api_url(PORT + 1))
    worker = start("worker")
    start("server")
    expected = LocalState(api_url=api_url(PORT), server=server, worker=worker)
    assert read_local_state(settings) == expected
    state_file(settings).write_text("{")
    assert read_local_state(settings) == expected
    ended = expected.model_copy(update={"server": server.model_copy(update={"start_ticks": 1})})
    write_local_state(settings, ended)
    assert read_local_state(settings) == expected


def test_a_server_without_its_worker_may_have_had_one(settings: Settings, start: Start) -> None:
    """Its runs may go on: none is marked as crashed."""
    start("server")
    state = read_local_state(settings)
    assert state is not None
    assert state.worker is not None
    assert state.worker.find() is None


@pytest.mark.parametrize("document", ["gone", "damaged", "of another pair", "of the server alone"])
def test_down_ends_all_that_run(document: str, settings: Settings, start: Start) -> None:
    all_of_them = [start(kind) for kind in ("server", "worker", "server", "worker")]
    match document:
        case "damaged":
            state_file(settings).write_text("{")
        case "of another pair":
            state = LocalState(api_url=api_url(PORT), server=all_of_them[2], worker=all_of_them[3])
            write_local_state(settings, state)
        case "of the server alone":
            write_local_state(settings, LocalState(api_url=api_url(PORT), server=all_of_them[0]))
    assert local.stop(settings) == ["worker", "server"]
    assert not any(process.find() for process in all_of_them)
    assert not state_file(settings).exists()


def test_up_leaves_no_second_pair(settings: Settings, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    kept = start("server"), start("worker")
    others = [start("server"), start("worker", PREFECT_API_URL=api_url(PORT + 1)), start("worker")]
    for name in ("wait_for_server", "_register"):
        monkeypatch.setattr(local, name, lambda *_: None)
    monkeypatch.setattr(local, "_see_to_notifications", lambda: None)
    state = local.start(settings, None)
    assert (state.server, state.worker) == kept
    assert LocalState.model_validate_json(state_file(settings).read_bytes()) == state
    assert all(process.find() for process in kept)
    assert not any(process.find() for process in others)
