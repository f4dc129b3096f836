"""What `slipway up` and `slipway down` know of the processes that they started."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest
from api_server import serving

from blocks.prefect.api_key import api_key, key_file
from blocks.prefect.database import database_file, ready_database
from blocks.prefect.server import api_url
from blocks.processes.ports import free_port
from blocks.processes.started_process import StartedProcess
from deployments import local, prefect_api
from deployments.local_state import (
    LocalState,
    read_local_state,
    server_log,
    state_file,
    write_local_state,
)
from tasks.core.errors import SlipwayError
from tasks.core.settings import Settings

pytestmark = pytest.mark.slow

PREFECT = str(Path(sys.executable).with_name("prefect"))
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def settings(slipway_home: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Of an empty home; what a command sets for Prefect is gone after the test."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return Settings.load()


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts processes that wait; at the end they are gone."""
    children: list[subprocess.Popen[bytes]] = []

    def started(*arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "print(flush=True); input()", *arguments]
        children.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        assert children[-1].stdout is not None
        assert children[-1].stdout.readline() == b"\n"
        return children[-1]

    yield started
    for child in children:
        child.kill()
        child.communicate()


def test_a_step_of_the_clock_loses_no_process(
    settings: Settings, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells the time of day at which a process began by its clock of now."""
    server, worker = start(), start()
    both = [StartedProcess.of(child.pid) for child in (server, worker)]
    write_local_state(settings, LocalState(api_url="http://127.0.0.1:1/api", server=both[0], worker=both[1]))
    by_the_old_clock = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: by_the_old_clock(self) + 3600)
    state = read_local_state(settings)
    assert state is not None
    assert state.alive
    assert local.stop(settings) == ["worker", "server"]
    assert not psutil.pid_exists(server.pid)
    assert not psutil.pid_exists(worker.pid)
    assert not state_file(settings).exists()


def test_a_process_of_that_id_is_another_one_after_a_boot_or_a_reuse(start: Start) -> None:
    found = StartedProcess.of(start().pid)
    assert found.find() is not None
    assert found.model_copy(update={"boot_id": "another"}).find() is None
    assert found.model_copy(update={"start_ticks": found.start_ticks - 1}).find() is None


def test_down_forgets_nothing_that_goes_on(
    settings: Settings, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = StartedProcess.of(start().pid)
    write_local_state(settings, LocalState(api_url="http://127.0.0.1:1/api", server=server))
    with monkeypatch.context() as stuck:
        stuck.setattr(local, "_end", lambda process: process is not None)
        with pytest.raises(SlipwayError, match=f"server did not end .*{server.pid}"):
            local.stop(settings)
    assert local.stop(settings) == ["server"]


def test_a_document_that_names_the_time_of_day_is_read(settings: Settings, start: Start) -> None:
    """As written up to November 2026; its processes are told by their command."""
    ours, strange = start(PREFECT), start("prefect")
    document = {
        "api_url": "http://127.0.0.1:1/api",
        "server": {"pid": ours.pid, "started_at": 1.5},
        "worker": {"pid": strange.pid, "started_at": 2.5},
    }
    state_file(settings).parent.mkdir(parents=True)
    state_file(settings).write_text(json.dumps(document))
    state = read_local_state(settings)
    assert state is not None
    assert state.server == StartedProcess.of(ours.pid)
    assert local.stop(settings) == ["server"]
    assert strange.poll() is None
    assert not state_file(settings).exists()


@pytest.fixture
def slow_server(settings: Settings) -> Iterator[tuple[str, list[int]]]:
    """The address of an API that is ready at its third answer to whether it is, and what it has answered to that.

    Its database is sound.
    """
    ready_database(settings)
    with contextlib.closing(sqlite3.connect(database_file(settings))) as database:
        database.execute("CREATE TABLE runs (name)")
    answers: list[int] = []
    asks_for = _header(api_key(settings))

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code = 200 if self.headers.get("Authorization") == asks_for else 401
            if self.path.endswith("/health"):
                code = 503 if len(answers) < 2 else 200
                answers.append(code)
            self.send_response(code)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Health)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield api_url(server.server_port), answers
    server.shutdown()
    server.server_close()


@contextlib.contextmanager
def open_api() -> Iterator[str]:
    """The address of an API that says yes to everybody."""

    class Open(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    with serving(Open, None) as address:
        yield f"{address}/api"


def test_up_waits_for_a_server_whose_start_was_interrupted(
    settings: Settings, slow_server: tuple[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, answers = slow_server
    here = StartedProcess.of(os.getpid())
    write_local_state(settings, LocalState(api_url=url, server=here, worker=here))
    seen: list[list[int]] = []
    monkeypatch.setattr(local, "_register", lambda *_: seen.append([*answers]))
    monkeypatch.setattr(local, "_see_to_notifications", lambda: None)
    assert local.start(settings, None).api_url == url
    assert seen == [[503, 503, 200]]


def test_a_deploy_waits_for_it_too(settings: Settings, slow_server: tuple[str, list[int]]) -> None:
    url, answers = slow_server
    write_local_state(settings, LocalState(api_url=url, server=StartedProcess.of(os.getpid())))
    with prefect_api.prefect_api(settings) as api:
        assert (api.url, answers) == (url, [])
        api.wait()
    assert answers == [503, 503, 200]


def test_a_server_that_ends_while_it_is_waited_for_is_one_clear_line(
    settings: Settings, start: Start
) -> None:
    server = start()
    state = LocalState(api_url=api_url(free_port()), server=StartedProcess.of(server.pid))
    write_local_state(settings, state)
    server_log(settings).parent.mkdir(parents=True)
    server_log(settings).write_text("no room\n")
    with prefect_api.prefect_api(settings) as api:
        server.kill()
        with pytest.raises(SlipwayError, match="the local Prefect server ended while starting") as caught:
            api.wait()
    assert caught.value.detail == "no room"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda settings: key_file(settings).write_text("slipway:" + 43 * "A"), "does not accept the key"),
        (lambda settings: key_file(settings).write_bytes(b""), "does not accept the key"),
        (lambda settings: key_file(settings).write_bytes(b"\xff\x00"), "does not accept the key"),
        (lambda settings: key_file(settings).unlink(), "does not accept the key"),
        (lambda settings: database_file(settings).write_bytes(b"no database " * 99), "is damaged"),
        (lambda settings: database_file(settings).write_bytes(b""), "is damaged"),
        (lambda settings: database_file(settings).unlink(), "is damaged"),
    ],
    ids=[*(f"key {kind}" for kind in ("another", "empty", "garbage", "gone")),
         *(f"database {kind}" for kind in ("garbage", "empty", "gone"))],
)  # fmt: skip
def test_a_server_that_cannot_be_used_is_named_and_up_starts_it_again(
    change: Callable[[Settings], None],
    reason: str,
    settings: Settings,
    slow_server: tuple[str, list[int]],
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = start()
    state = LocalState(api_url=slow_server[0], server=StartedProcess.of(server.pid))
    write_local_state(settings, state)
    change(settings)
    with prefect_api.prefect_api(settings) as api, pytest.raises(SlipwayError, match=reason) as caught:
        api.wait()
    assert caught.value.fix is not None
    assert caught.value.fix.endswith("slipway up")
    _up_starts_another(settings, monkeypatch)
    assert not psutil.pid_exists(server.pid)


def test_up_replaces_a_server_that_asks_for_no_key(
    settings: Settings, slow_server: tuple[str, list[int]], start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of an earlier version."""
    server = start()
    with open_api() as url:
        write_local_state(settings, LocalState(api_url=url, server=StartedProcess.of(server.pid)))
        with (
            prefect_api.prefect_api(settings) as api,
            pytest.raises(SlipwayError, match="open to every user"),
        ):
            api.wait()
        _up_starts_another(settings, monkeypatch)
    assert not psutil.pid_exists(server.pid)


def _up_starts_another(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    class StartedError(Exception):
        """Instead of a server."""

    def started(*_: object) -> LocalState:
        raise StartedError

    monkeypatch.setattr(local, "_start_server", started)
    with pytest.raises(StartedError):
        local.start(settings, None)


def _header(key: str) -> str:
    return f"Basic {base64.b64encode(key.encode()).decode()}"


GONE = StartedProcess(pid=1, boot_id="another", start_ticks=1)


@pytest.mark.parametrize(
    ("worker", "database", "done"),
    [
        (None, None, ["end killed runs", "start worker"]),
        (GONE, None, ["start worker"]),
        (None, "postgresql+asyncpg://elsewhere/prefect", ["start worker"]),
    ],
    ids=["new server", "server that had a worker", "database that other hosts use"],
)
def test_only_a_new_server_with_its_own_database_has_runs_that_nobody_runs(
    worker: StartedProcess | None,
    database: str | None,
    done: list[str],
    settings: Settings,
    slow_server: tuple[str, list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker that was killed may have left runs that go on, and so may other hosts' workers."""
    if database is not None:
        os.environ["PREFECT_API_DATABASE_CONNECTION_URL"] = database
    here = StartedProcess.of(os.getpid())
    write_local_state(settings, LocalState(api_url=slow_server[0], server=here, worker=worker))
    seen: list[str] = []
    monkeypatch.setattr(local, "_register", lambda *_: None)
    monkeypatch.setattr(local, "_see_to_notifications", lambda: None)
    monkeypatch.setattr(local, "_end_killed_runs", lambda: seen.append("end killed runs"))
    monkeypatch.setattr(local, "_start_worker", lambda *_: seen.append("start worker") or here)
    assert local.start(settings, None).worker == here
    assert seen == done
