"""What is told to be damaged in a service's folder, and what is left alone."""

from __future__ import annotations

import contextlib
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from releases import make_release

from tasks.core.release import ServiceFolder, ServiceState
from tasks.core.spec_kinds import Target
from tasks.rollout.daemon.files import set_aside
from tasks.rollout.damage import set_damage_aside
from tasks.rollout.recovery.apply import target_of

pytestmark = pytest.mark.slow

STATE = ServiceState(
    name="chat", target=Target.DOCKER, host="127.0.0.1", port=8000, release="sha256:ab", since=datetime.now(UTC)
).model_dump_json(by_alias=True)  # fmt: skip
DOCUMENTS = {
    "current.json": STATE,
    "last.json": STATE,
    "supervisor.json": '{"release": "a", "argv": [], "env": {}, "host": "", "port": 1, "restarts": 0, "since": 0}',
    "processes.json": '{"kind": "process", "period_s": 60}',
    "recovery.json": '{"failures": 1}',
    "proxy/127.0.0.1-8000/route.json": '{"host": "127.0.0.1", "port": 8000}',
    "proxy/current": "127.0.0.1-8000",
}
PLAIN = (
    "supervisor.lock",
    "samples/sampler.lock",
    "samples/17-1-1.csv",
    "logs/supervisor.log",
    "proxy/127.0.0.1-8000/haproxy.cfg",
    "proxy/127.0.0.1-8000/haproxy.pid",
)
SOCKETS = ("control.sock", "proxy/127.0.0.1-8000/admin.sock")
FOLDERS = ("releases", "logs", "samples", "proxy")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServiceFolder:
    """A service's folder in which everything is sound."""
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"weights")
    release = make_release(tmp_path / "python", gguf)
    folder = ServiceFolder(tmp_path / "services", "chat")
    documents = {**DOCUMENTS, "releases/ab.json": release.model_dump_json(by_alias=True)}
    for name, text in {**documents, **dict.fromkeys(PLAIN, "")}.items():
        (folder.root / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.root / name).write_text(text)
    monkeypatch.chdir(folder.root)  # a socket's name is short
    for name in SOCKETS:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(name)
    return folder


def test_what_is_sound_stays(folder: ServiceFolder) -> None:
    assert set_damage_aside(folder) == ()
    assert not (folder.root / "damaged").exists()


CONTENTS = {
    "empty": b"",
    "half": b"{",
    "not text": b"\xff\xfe\x00",
    "a list": b"[]",
    "null": b"null",
    "deep": b"[" * 100_000,
    "a folder": None,
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("name", [*DOCUMENTS, "releases/ab.json"])
def test_a_damaged_document_is_set_aside(folder: ServiceFolder, name: str, content: bytes | None) -> None:
    path = folder.root / name
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    assert set_damage_aside(folder) == (path,)
    assert (folder.root / "damaged" / name.replace("/", "-")).exists()
    assert path.exists() == (name in ("current.json", "last.json")), "its copy stands in"
    assert set_damage_aside(folder) == ()


@pytest.mark.parametrize("name", [*PLAIN, *SOCKETS])
def test_a_folder_in_a_files_place_is_set_aside(folder: ServiceFolder, name: str) -> None:
    for _ in range(2):  # what was set aside before is replaced
        (folder.root / name).unlink(missing_ok=True)
        (folder.root / name / "inside").mkdir(parents=True)
        assert set_damage_aside(folder) == (folder.root / name,)
        assert not (folder.root / name).exists()


@pytest.mark.parametrize("name", FOLDERS)
def test_a_file_in_a_folders_place_is_set_aside(folder: ServiceFolder, name: str) -> None:
    (folder.root / name).rename(folder.root / "elsewhere")
    (folder.root / name).touch()
    assert set_damage_aside(folder) == (folder.root / name,)


@pytest.mark.parametrize("name", PLAIN)
def test_an_empty_lock_or_log_is_no_damage(folder: ServiceFolder, name: str) -> None:
    (folder.root / name).write_bytes(b"\xff")
    assert set_damage_aside(folder) == ()


def test_a_release_of_another_version_stays(folder: ServiceFolder) -> None:
    document = folder.root / "releases" / "ab.json"
    document.write_text(document.read_text().replace("slipway.release/2", "slipway.release/3"))
    assert set_damage_aside(folder) == ()


def test_without_a_copy_a_damaged_state_is_gone(folder: ServiceFolder) -> None:
    for name in ("current.json", "last.json"):
        (folder.root / name).write_text("")
    set_damage_aside(folder)
    assert folder.last() is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"target": "boat"}', "[" * 100_000])
def test_where_a_service_runs_is_told_by_what_can_be_read(content: str, tmp_path: Path) -> None:
    folder = ServiceFolder(tmp_path, "chat")
    folder.root.mkdir()
    folder.state_file.write_text(content)
    assert target_of(folder) is Target.PROCESS
    folder.last_file.write_text(STATE)
    assert target_of(folder) is Target.DOCKER


def test_a_state_without_a_copy_gets_one(folder: ServiceFolder) -> None:
    """As in a home of a version that wrote none: a `current.json` that is damaged later is not lost."""
    folder.last_file.unlink()
    assert set_damage_aside(folder) == ()
    state = folder.state()
    folder.state_file.write_text("")
    set_damage_aside(folder)
    assert state is not None
    assert folder.state() == state


def test_a_stopped_service_keeps_its_copy_only(folder: ServiceFolder) -> None:
    folder.state_file.unlink()
    set_damage_aside(folder)
    assert not folder.state_file.exists()
    assert folder.last_file.exists()


def test_two_that_set_the_same_damage_aside_do_not_meet(folder: ServiceFolder) -> None:
    """As a supervisor and a command do: one moves the folder while the other one makes room for it."""
    damaged = folder.root / "logs" / "engine.log"

    def move_again_and_again() -> None:
        for _ in range(200):
            with contextlib.suppress(FileNotFoundError, FileExistsError):  # moved while it is made
                (damaged / "something").mkdir(parents=True, exist_ok=True)
            set_aside(damaged, folder.root)

    with ThreadPoolExecutor() as pool:
        for moved in [pool.submit(move_again_and_again) for _ in range(4)]:
            moved.result()
    assert not damaged.exists()
