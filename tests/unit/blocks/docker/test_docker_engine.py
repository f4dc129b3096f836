"""What a Docker engine's complaints become. Its answers are those of real engines; the engine is not needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import requests
from docker.errors import APIError, ImageNotFound
from inline_snapshot import snapshot

from blocks.docker.docker_engine import DockerEngine
from blocks.services.targets import check_target
from tasks.core.errors import MissingToolError, PortTakenError, RolloutError
from tasks.core.spec_kinds import Target
from tasks.rollout.container.models import ContainerPlan

NO_GPU = (
    'could not select device driver "" with capabilities: [[gpu]]',
    'could not select device driver "nvidia" with capabilities: [[gpu]]',
    'could not select device driver "cdi" with capabilities: [[gpu]]',
    "Unknown runtime specified nvidia",
    "error gathering device information while adding custom device",
)


class FakeContainer:
    """A container whose start fails with what an engine answered."""

    id = "c0ffee"

    def __init__(self, answer: BaseException) -> None:
        self.answer = answer
        self.removed = False

    def start(self) -> None:
        raise self.answer

    def remove(self, **_: object) -> None:
        self.removed = True


class FakeClient:
    """A Docker client with one container to create."""

    def __init__(self, container: FakeContainer, info: dict[str, Any]) -> None:
        self.container = container
        self.containers = self
        self.created: dict[str, Any] = {}
        self._info = info

    def info(self) -> dict[str, Any]:
        return self._info

    def create(self, *_: object, **options: Any) -> FakeContainer:
        self.created = options
        return self.container

    def get(self, _: str) -> FakeContainer:
        return self.container


def plan(gpus: int = 0, gpu_indices: tuple[int, ...] = ()) -> ContainerPlan:
    return ContainerPlan(
        name="slipway-chat",
        image="sha256:i",
        argv=("x",),
        env={},
        labels={},
        user="1:1",
        model_source=Path("/m.gguf"),
        model_target="/model/m.gguf",
        port=8000,
        host_port=4000,
        pids=64,
        shm_bytes=1,
        tmp_bytes=1,
        gpus=gpus,
        gpu_indices=gpu_indices,
    )


def start(answer: BaseException, info: dict[str, Any] | None = None, *, gpus: int = 0) -> FakeClient:
    """Try to start; whatever it is that fails, the container is removed."""
    client = FakeClient(FakeContainer(answer), info or {"Runtimes": {"runc": {}}})
    try:
        DockerEngine(client).start(plan(gpus))  # type: ignore[arg-type]
    finally:
        assert client.container.removed or not client.created
    return client


@pytest.mark.parametrize("text", NO_GPU)
def test_every_way_to_say_no_gpu_is_one_error(text: str) -> None:
    with pytest.raises(MissingToolError) as caught:
        start(APIError("500", explanation=text), {"Runtimes": {"nvidia": {}}}, gpus=2)
    assert caught.value.what == "the release needs 2 GPUs, but this Docker engine cannot provide any"
    assert caught.value.detail == text


def test_a_gpu_is_not_even_asked_for_without_a_runtime(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("kind: vendor.com/net")
    info = {"Runtimes": {"runc": {}}, "CDISpecDirs": [str(tmp_path)]}
    with pytest.raises(MissingToolError):
        start(APIError("not reached"), info, gpus=1)


def test_gpus_are_asked_for_by_runtime_or_by_cdi(tmp_path: Path) -> None:
    (tmp_path / "nvidia.yaml").write_text("kind: nvidia.com/gpu")
    runtime, cdi = {"Runtimes": {"nvidia": {}}}, {"Runtimes": {}, "CDISpecDirs": [str(tmp_path)]}

    def asked(info: dict[str, Any], wanted: ContainerPlan) -> tuple[str, int, list[str]]:
        client = FakeClient(FakeContainer(APIError("enough")), info)
        with pytest.raises(RolloutError):
            DockerEngine(client).start(wanted)  # type: ignore[arg-type]
        (request,) = client.created["device_requests"]
        return request["Driver"], request["Count"], request["DeviceIDs"]

    assert asked(runtime, plan(2)) == ("nvidia", 0, ["0", "1"])
    assert asked(cdi, plan(2)) == ("cdi", 0, ["nvidia.com/gpu=0", "nvidia.com/gpu=1"])
    # Those that the model was measured on.
    assert asked(runtime, plan(2, (3, 1))) == ("nvidia", 0, ["3", "1"])
    assert asked(cdi, plan(1, (3,))) == ("cdi", 0, ["nvidia.com/gpu=3"])


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("driver failed programming external connectivity: port is already allocated", PortTakenError),
        ("listen tcp4 127.0.0.1:4000: bind: address already in use", PortTakenError),
        ("no such device", RolloutError),
    ],
)
def test_a_failed_start_is_explained(text: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="the container slipway-chat"):
        start(APIError("500", explanation=text))


def test_an_interrupted_start_leaves_no_container() -> None:
    with pytest.raises(RolloutError, match="could not start the container slipway-chat"):
        start(requests.ConnectionError("gone"))
    with pytest.raises(KeyboardInterrupt):
        start(KeyboardInterrupt())


def test_an_image_that_is_gone_is_named() -> None:
    with pytest.raises(RolloutError) as caught:
        start(ImageNotFound("no such image"))
    assert str(caught.value) == snapshot("the image sha256:i is gone (deploy again to recreate it)")


@pytest.mark.parametrize("address", ["unix:///nowhere/docker.sock", "tcp://127.0.0.1:9", "nonsense://x"])
def test_no_docker_engine_is_one_clear_error(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", address)
    with pytest.raises(MissingToolError) as caught:
        check_target(Target.DOCKER)
    assert address in caught.value.what
    assert caught.value.fix == snapshot("install and start Docker, set DOCKER_HOST, or use target: process")


def test_the_process_target_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    check_target(Target.PROCESS)
