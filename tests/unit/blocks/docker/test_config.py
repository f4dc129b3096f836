"""Docker's configuration as users have it: one line that names it, or what it says is followed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from blocks.docker.config import DockerConfig
from blocks.docker.docker_engine import DockerEngine
from blocks.services.targets import check_target
from tasks.core.errors import MissingToolError, SlipwayError, WrongUseError
from tasks.core.spec_kinds import Target

AUTH = {"auths": {"registry.example": {"auth": "no base64, no colon"}}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of Docker's configuration; empty."""
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "docker").mkdir()
    return tmp_path / "docker"


def write_context(folder: Path, name: str, text: str) -> None:
    meta = folder / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest() / "meta.json"
    meta.parent.mkdir(parents=True)
    meta.write_text(text)


def context(host: str) -> str:
    endpoint: dict[str, Any] = {"Host": host, "SkipTLSVerify": False}
    return json.dumps({"Name": "far", "Metadata": {}, "Endpoints": {"docker": endpoint}})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "junk",
        "[]",
        "7",
        "\x00",
        "[" * 9999,
        '{"credsStore": 7}',
        '{"credHelpers": [1]}',
        '{"currentContext": [1]}',
        '{"auths": [1]}',
        '{"auths": {"x": 7}}',
        '{"auths": {"x": {"auth": 7}}}',
        json.dumps(AUTH),
    ],
)
def test_a_configuration_that_cannot_be_read_is_named(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(SlipwayError) as caught:
        check_target(Target.DOCKER)
    assert str(folder / "config.json") in caught.value.what
    assert "DOCKER_CONFIG" in (caught.value.fix or "")


def test_a_configuration_in_another_encoding_is_named(folder: Path) -> None:
    (folder / "config.json").write_bytes(b'{"credsStore": "\xe4"}')
    with pytest.raises(WrongUseError, match=r"config\.json cannot be read"):
        DockerConfig.read()


@pytest.mark.parametrize("text", ['{"credsStore": "nosuch"}', '{"credHelpers": {"gcr.io": "nosuch"}}'])
def test_a_credential_helper_that_is_not_installed_is_named(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(MissingToolError, match="docker-credential-nosuch, which is not installed") as caught:
        check_target(Target.DOCKER)
    assert str(folder / "config.json") in caught.value.what


def test_the_current_context_is_followed_and_named(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").write_text('{"currentContext": "far"}')
    write_context(folder, "far", context(f"unix://{tmp_path}/no.sock"))
    with pytest.raises(MissingToolError) as caught:
        DockerEngine.connect()
    assert caught.value.what.endswith(f"none answers at unix://{tmp_path}/no.sock (Docker's context far)")


def test_docker_host_comes_before_the_context(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "config.json").write_text('{"currentContext": "far"}')
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent.sock")
    with pytest.raises(MissingToolError, match=r"none answers at unix:///nonexistent\.sock \(DOCKER_HOST\)"):
        DockerEngine.connect()


@pytest.mark.parametrize(
    "host", ["junk://x", "tcp://127.0.0.1:9", "ssh://nosuch.invalid", "tcp://x:port", "::"]
)
def test_a_docker_host_that_leads_nowhere_is_named(
    host: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    with pytest.raises(MissingToolError) as caught:
        DockerEngine.connect()
    assert f"{host} (DOCKER_HOST)" in caught.value.what


@pytest.mark.parametrize("text", [None, "", "junk", "[]", "{}", '{"Endpoints": {"docker": 7}}'])
@pytest.mark.parametrize("by", ["variable", "file"])
def test_a_context_that_cannot_be_read_is_one_line(
    by: str, text: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker's client would take this host's engine for one that is not there, and say nothing."""
    if by == "variable":
        monkeypatch.setenv("DOCKER_CONTEXT", "far")
    else:
        (folder / "config.json").write_text('{"currentContext": "far"}')
    if text is not None:
        write_context(folder, "far", text)
    with pytest.raises(SlipwayError):
        DockerEngine.connect()


def test_the_command_says_why_it_may_not_use_the_engine(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from deployments.cli.doctor import diagnose
    from tasks.core.settings import Settings

    (folder / "config.json").write_text("junk")
    found = next(one for one in diagnose(Settings.load()) if one.thing == "docker")
    assert not found.there
    assert str(folder / "config.json") in found.found
