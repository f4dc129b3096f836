"""`slipway dify register`, against a server that speaks Dify's API and is not Dify."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from dify_server import EMAIL, PASSWORD, State, dify_server
from releases import make_release

from deployments.cli.main import main
from tasks.core.model_task import Task
from tasks.core.release import Release, ServiceFolder, ServiceState
from tasks.core.spec_sections import Serving


@pytest.fixture
def console() -> Iterator[tuple[str, State]]:
    with dify_server() as found:
        yield found


@pytest.fixture
def service(slipway_home: Path, tmp_path: Path) -> str:
    """A service that is known to serve, and of which nothing runs."""
    return keep(slipway_home, make_release(tmp_path / "env" / "bin" / "python", weights(tmp_path)))


def weights(folder: Path) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(b"GGUF")
    return path


def keep(slipway_home: Path, release: Release) -> str:
    """Write down that this release serves; the service's name."""
    folder = ServiceFolder(slipway_home / "services", release.name)
    document = folder.release_file(release.id)
    document.parent.mkdir(parents=True)
    document.write_text(release.model_dump_json(by_alias=True))
    state = ServiceState(
        name=release.name,
        target=release.target,
        host="127.0.0.1",
        port=9,
        release=release.id,
        since=datetime.now(UTC),
    )
    folder.state_file.write_text(state.model_dump_json(by_alias=True))
    return release.name


def slipway(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["dify", "register", *arguments])
    return int(ended.value.code or 0)


def test_the_password_comes_by_the_environment(
    service: str,
    console: tuple[str, State],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address, state = console
    account = ("--console", address, "--email", EMAIL)
    assert slipway(service, *account) == 2
    assert "the password in SLIPWAY_DIFY_PASSWORD" in capsys.readouterr().err
    monkeypatch.setenv("SLIPWAY_DIFY_PASSWORD", PASSWORD)
    assert slipway(service, *account) == 1
    said = capsys.readouterr().err
    assert "did not take chat at http://127.0.0.1:9: Credentials validation failed" in said
    assert "not 127.0.0.1" in said
    assert PASSWORD not in said
    monkeypatch.setattr("dify_server.ask", lambda credentials: None)
    assert slipway(service, *account, "--endpoint", "http://serving.example:8000", "--json") == 0
    assert json.loads(capsys.readouterr().out)["status"] == "active"
    assert state.models["chat"]["endpoint_url"] == "http://serving.example:8000/v1"
    assert state.models["chat"]["context_size"] == "256"
    assert "api_key" not in state.models["chat"]
    state.status = "no-configure"
    assert slipway(service, *account) == 3
    assert f"chat is no-configure in Dify at {address}" in capsys.readouterr().out


def test_dify_gets_a_key_of_a_service_that_needs_one(
    service: str,
    slipway_home: Path,
    console: tuple[str, State],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# the first one is Dify's\nfirst-key-1\nsecond-key-2\n")
    keys.chmod(0o600)
    folder = ServiceFolder(slipway_home / "services", service)
    state, release = folder.serving()
    locked = release.spec.model_copy(update={"serving": Serving(api_key=f"file:{keys}")})
    release = release.model_copy(update={"spec": locked})
    folder.release_file(release.id).write_text(release.model_dump_json(by_alias=True))
    state = state.model_copy(update={"release": release.id})
    folder.state_file.write_text(state.model_dump_json(by_alias=True))
    monkeypatch.setenv("SLIPWAY_DIFY_PASSWORD", PASSWORD)
    monkeypatch.setattr("dify_server.ask", lambda credentials: None)
    address, dify = console
    assert slipway(service, "--console", address, "--email", EMAIL) == 0
    assert dify.models["chat"]["api_key"] == "first-key-1"
    assert "first-key-1" not in "".join(capsys.readouterr())
    keys.unlink()
    assert slipway(service, "--console", address, "--email", EMAIL) == 2
    assert f"no key file {keys}" in capsys.readouterr().err


def test_a_service_that_does_not_run_is_named(slipway_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert slipway("none") == 2
    assert "the service none is not running" in capsys.readouterr().err


def test_a_model_for_embeddings_is_not_registered_as_one_that_chats(
    slipway_home: Path, tmp_path: Path, console: tuple[str, State], capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_release(tmp_path / "env" / "bin" / "python", weights(tmp_path))
    name = keep(
        slipway_home, made.model_copy(update={"config": made.config.model_copy(update={"task": Task.EMBED})})
    )
    assert slipway(name, "--console", console[0], "--email", EMAIL) == 2
    assert f"{name} serves a model for embed" in capsys.readouterr().err
