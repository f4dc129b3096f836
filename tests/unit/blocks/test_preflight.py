"""What this host can refuse a deploy for: one line each, before anything is built, copied or measured."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from small_disk import small_disk_at

from blocks import preflight
from blocks.preflight import check_host, check_inputs, check_model
from tasks.compatibility.models import NvmlReading
from tasks.core.errors import (
    MissingToolError,
    ModelError,
    PortTakenError,
    SlipwayError,
    SpecError,
    WrongUseError,
)
from tasks.core.facts import Gpu
from tasks.core.settings import Settings
from tasks.core.spec import DeploySpec, parse_spec

GPU = Gpu(name="NVIDIA H200", compute_capability="9.0", memory_bytes=141 * 10**9)


@pytest.fixture(autouse=True)
def no_gpu(slipway_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without GPUs, with an empty home."""
    monkeypatch.setattr(preflight, "read_nvml", NvmlReading)


def spec(**sections: Any) -> DeploySpec:
    return parse_spec({"name": "chat", "model": "file:/model", **sections})


def refused(given: DeploySpec) -> SlipwayError:
    with pytest.raises(SlipwayError) as caught:
        check_host(given, Settings.load())
    assert caught.value.fix or isinstance(caught.value, SpecError)
    return caught.value


def test_a_host_that_lacks_nothing_is_left_as_it_was(slipway_home: Path) -> None:
    check_host(spec(), Settings.load())
    assert not slipway_home.exists() or not list(slipway_home.iterdir())


def test_a_port_that_something_else_has() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        fault = refused(spec(rollout={"port": port}))
    assert isinstance(fault, PortTakenError)
    assert f"process {os.getpid()}" in fault.what


@contextmanager
def listening(*arguments: str) -> Iterator[int]:
    """Another process that listens on a port, with these words in its command line."""
    code = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.communicate("\n")


def test_a_port_that_the_service_itself_has(slipway_home: Path) -> None:
    """Its supervisor or its proxy, whether or not a release serves behind it now."""
    with listening("--folder", str(slipway_home / "services" / "chat")) as port:
        check_host(spec(rollout={"port": port}), Settings.load())
    with listening("--folder", str(slipway_home / "services" / "chat-2")) as port:
        assert isinstance(refused(spec(rollout={"port": port})), PortTakenError)


def test_an_address_of_another_host() -> None:
    fault = refused(spec(rollout={"host": "192.0.2.7"}))
    assert (fault.exit_code, "192.0.2.7" in fault.what) == (2, True)


@pytest.mark.parametrize(("there", "asked"), [(0, 1), (1, 2), (0, 8)])
def test_more_gpus_than_there_are(there: int, asked: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "read_nvml", lambda: NvmlReading(available=True, gpus=(GPU,) * there))
    fault = refused(spec(hardware={"gpus": asked}))
    assert fault.what == f"hardware.gpus asks for {asked}, and this host has {there or 'none'}"
    check_host(spec(hardware={"gpus": there}), Settings.load())


def test_an_engine_that_needs_a_gpu_on_a_host_without_is_judged_instead() -> None:
    """The verdict says more, and is recorded."""
    check_inputs(spec(engine="vllm", hardware={"gpus": 1}), Settings.load())


def a_folder(path: Path) -> None:
    path.mkdir()


def absent(path: Path) -> None:
    """Nothing."""


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("make", [absent, a_folder, a_pipe, a_link_to_itself])
@pytest.mark.parametrize("key", ["quality_text", "calibration_text", "task_set"])
def test_a_text_that_cannot_be_read(key: str, make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "text")
    fault = refused(
        spec(tuning={"candidates": ["f16", "q8_0"], "quality_text": __file__, key: str(tmp_path / "text")})
    )
    assert isinstance(fault, SpecError)
    assert f"tuning.{key}" in fault.what


@pytest.mark.parametrize("content", [b"junk", b"\xff", b'{"prompt": 7}'])
def test_a_task_set_that_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_bytes(content)
    tuning = {"quality_text": __file__, "task_set": str(tmp_path / "tasks.jsonl")}
    assert "tasks.jsonl" in refused(spec(tuning=tuning)).what


def test_formats_that_the_engine_does_not_load() -> None:
    assert "does not load w8a8" in refused(spec(tuning={"candidates": ["w8a8"]})).what


@pytest.mark.parametrize("environment", [{"wheels": "/nonexistent"}, {"manager": "system", "path": "/etc"}])
def test_an_environment_whose_folder_is_not_there(environment: dict[str, str]) -> None:
    assert (
        f"{environment.get('wheels') or environment['path']}" in refused(spec(environment=environment)).what
    )


FOLDERS = (
    ".",
    "locks",
    "environments",
    "models",
    "candidates",
    "services",
    "services/chat",
    "leases",
    "records",
)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_the_home_that_is_a_file(name: str, slipway_home: Path) -> None:
    path = slipway_home / name
    if path.exists():
        path.rmdir()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    fault = refused(spec())
    assert (fault.what, fault.exit_code) == (f"{path} is not a folder", 2)


@pytest.fixture
def nobodys(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that everybody reaches, unlike pytest's own; needs root, who becomes nobody by `os.seteuid`."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setenv("SLIPWAY_HOME", f"{folder}/home")
        yield Path(folder)
        os.seteuid(0)


@pytest.mark.parametrize("name", [*FOLDERS, "leases/service-chat"])
def test_a_home_that_another_user_made(name: str, nobodys: Path) -> None:
    """All of it, or a folder or lock in it that root left there."""
    home = nobodys / "home"
    path = home / name
    if name == "leases/service-chat":
        path.parent.mkdir(parents=True)
        path.touch(mode=0o644)
    else:
        path.mkdir(parents=True, exist_ok=True)
    for folder in (home, *home.rglob("*")):
        os.chown(folder, 65534, 65534)
    os.chown(path, 0, 0)
    os.seteuid(65534)
    fault = refused(spec())
    assert isinstance(fault, WrongUseError)
    assert f"user 65534 may not write to {path}, which belongs to user 0" in fault.what


def test_a_disk_that_is_mounted_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk_at(tmp_path / "disk", "256k") as place:
        monkeypatch.setenv("SLIPWAY_HOME", str(place / "home"))
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        assert "mounted read-only" in refused(spec()).what


def test_a_model_that_is_not_there_or_may_not_be_read(nobodys: Path) -> None:
    settings, model = Settings.load(), nobodys / "model"
    with pytest.raises(SlipwayError, match="there is no model folder"):
        check_model(f"file:{model}", settings)
    model.mkdir(mode=0o755)
    with pytest.raises(SlipwayError, match="there are no files in"):
        check_model(f"file:{model}", settings)
    (model / "model.safetensors").touch(mode=0o600)
    check_model(f"file:{model}", settings)
    os.seteuid(65534)
    with pytest.raises(ModelError, match=r"model\.safetensors may not be read"):
        check_model(f"file:{model}", settings)


def test_a_docker_engine_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent.sock")
    assert isinstance(refused(spec(target="docker")), MissingToolError)
