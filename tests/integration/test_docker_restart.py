"""Docker's daemon is ended and started again, as by an upgrade: services come back without a command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_docker import OwnDocker, own_docker
from releases import make_release
from waiting import wait_until

from blocks.engine.api import EngineApi
from blocks.services.targets import open_target, prepare
from tasks.core.release import Release, ServiceFolder
from tasks.core.settings import Settings
from tasks.core.spec import DeploySpec
from tasks.core.spec_kinds import EngineKind, Target
from tasks.engines.catalogue import get_engine
from tasks.rollout.apply import roll_out

pytestmark = [
    pytest.mark.docker,
    pytest.mark.engine,
    pytest.mark.another_user,  # root alone may start a Docker daemon
]

BASE = "slipway/base:bookworm"


@pytest.fixture
def daemon(repository: Path, slipway_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnDocker]:
    subprocess.run([repository / "infra" / "images" / "base.sh", BASE], check=True)
    with own_docker() as docker:
        docker.load(BASE)
        monkeypatch.setenv("DOCKER_HOST", docker.host)
        yield docker


@pytest.fixture
def release(
    engine_python: Path, random_ggufs: tuple[Path, Path], daemon: OwnDocker, tmp_path: Path
) -> Release:
    wanted, lock = tmp_path / "requirements.in", tmp_path / "requirements.lock"
    wanted.write_text("\n".join(get_engine(EngineKind.LLAMA_CPP).card.requirements))
    uv = Path(sys.executable).with_name("uv")
    options = ["--quiet", "--generate-hashes", "--no-emit-index-url", "--python-version", "3.11"]
    subprocess.run([uv, "pip", "compile", *options, wanted, "-o", lock], check=True, capture_output=True)
    made = make_release(engine_python, random_ggufs[0])
    spec = DeploySpec.model_validate(
        {"name": "chat", "model": made.spec.model, "target": "docker", "rollout": {"base_image": BASE}}
    )
    changes = {"spec": spec, "target": spec.target, "lock_path": lock}
    return prepare(made.model_copy(update=changes), Settings.load())


def test_a_service_comes_back_with_dockers_daemon(release: Release, daemon: OwnDocker) -> None:
    settings = Settings.load()
    folder = ServiceFolder(settings.services, "chat")
    with open_target(Target.DOCKER, folder, settings) as target:
        endpoint = roll_out(release, folder, target, EngineApi).endpoint or ""
    try:
        daemon.end()
        daemon.start()
        with EngineApi(endpoint) as api:
            wait_until(api.ready, "the service answers again", timeout_s=60)
            assert api.complete("chat", "The", 4).text
        with open_target(Target.DOCKER, folder, settings) as target:
            running = target.running()
        assert running is not None
        assert (running.release, running.endpoint, running.up) == (release.id, endpoint, True)
    finally:
        with open_target(Target.DOCKER, folder, settings) as target:
            target.stop(drain_s=0)
