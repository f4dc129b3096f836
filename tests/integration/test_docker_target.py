"""`target: docker` with a real Docker engine, a real HAProxy and the real engine."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import docker
import httpx
import psutil
import pytest
from docker.api.client import APIClient
from inline_snapshot import snapshot
from load import Load
from releases import make_release
from slipway_command import SlipwayCommand
from waiting import wait_until

from blocks.docker.docker_engine import DockerEngine
from blocks.engine.api import EngineApi, is_silent
from blocks.processes.ports import free_port
from blocks.services.door import open_service, read_keys
from blocks.services.health_instruments import LocalInstruments
from blocks.services.kept_code import keep_template
from blocks.services.sampler import start_sampler, stop_sampler
from blocks.services.service_processes import processes_of
from blocks.services.targets import open_target, prepare
from tasks.core.chat_template import Template
from tasks.core.digests import digest_of_file
from tasks.core.errors import MissingToolError, NetworkError, PortTakenError, RolloutError
from tasks.core.home import make_home
from tasks.core.release import Release, ServiceFolder
from tasks.core.serving import ChatTemplate
from tasks.core.settings import Settings
from tasks.core.spec import DeploySpec
from tasks.core.spec_kinds import EngineKind, Target
from tasks.core.spec_sections import Serving
from tasks.core.verdicts import HealthVerdict, RolloutVerdict
from tasks.engines.catalogue import get_engine
from tasks.health.apply import check
from tasks.leaks.apply import read_runs
from tasks.rollout.apply import roll_out, stop_service
from tasks.rollout.container.models import ImagePlan
from tasks.rollout.container.plan import FOLDER_LABEL
from tasks.rollout.models import RolloutAction, RolloutResult, Running
from tasks.rollout.recovery.apply import Unwatched, look_at, start_service, target_of
from tasks.rollout.recovery.models import Past, Step
from tasks.rollout.recovery.plan import next_step

pytestmark = [pytest.mark.docker, pytest.mark.engine]

BASE = "slipway/base:bookworm"
DEEP = (
    "a-folder-whose-name-alone-would-nearly-fill-the-path-of-a-unix-socket/and-one-more-below-it-to-be-sure"
)

Make = Callable[..., Release]


@pytest.fixture(scope="session")
def base_image(repository: Path) -> str:
    """Made if it is not there; pulled from nowhere."""
    subprocess.run([repository / "infra" / "images" / "base.sh", BASE], check=True)
    return BASE


@pytest.fixture(scope="session")
def lock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hash lock of the embedded engine."""
    folder = tmp_path_factory.mktemp("lock")
    wanted, lock = folder / "requirements.in", folder / "requirements.lock"
    wanted.write_text("\n".join(get_engine(EngineKind.LLAMA_CPP).card.requirements))
    uv = Path(sys.executable).with_name("uv")
    options = ["--quiet", "--generate-hashes", "--no-emit-index-url", "--python-version", "3.11"]
    subprocess.run(
        [uv, "pip", "compile", *options, wanted, "-o", lock], check=True, stdout=subprocess.DEVNULL
    )
    return lock


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """A home deeper than a socket's path may be long. At the end all services are stopped; nothing is left."""
    home = tmp_path / DEEP
    monkeypatch.setenv("SLIPWAY_HOME", str(home))
    settings = Settings.load()
    yield settings
    for root in settings.services.glob("*"):
        with open_target(Target.DOCKER, ServiceFolder(settings.services, root.name), settings) as target:
            target.stop(drain_s=0)
    assert leftovers(home) == []


@pytest.fixture
def make(
    settings: Settings, engine_python: Path, random_ggufs: tuple[Path, Path], lock: Path, base_image: str
) -> Make:
    """Makes releases of the first or second model, with limits, as a deploy would."""

    def release(
        name: str = "chat",
        *,
        model: int = 0,
        batch: int = 2,
        hardware: dict[str, Any] | None = None,
        **rollout: Any,
    ) -> Release:
        made = make_release(engine_python, random_ggufs[model], name, batch)
        spec = DeploySpec.model_validate(
            {
                "name": name,
                "model": made.spec.model,
                "target": "docker",
                "hardware": {"memory": "512Mi", "cpus": 1} | (hardware or {}),
                "rollout": {"base_image": base_image} | rollout,
            }
        )
        changes = {"spec": spec, "target": spec.target, "lock_path": lock}
        return prepare(made.model_copy(update=changes), settings)

    return release


def leftovers(home: Path) -> list[str]:
    """Containers and proxies that belong to this home."""
    with docker_client() as client:
        found = [
            container.name or ""
            for container in client.containers.list(all=True)
            if container.labels.get("slipway.folder", "").startswith(str(home))
        ]
    return found + [str(process.pid) for process in proxies(home)]


def docker_client() -> contextlib.closing[docker.DockerClient]:
    return contextlib.closing(docker.from_env())


def proxies(home: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.name() == "haproxy" and any(str(home) in arg for arg in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def folder_of(settings: Settings, name: str = "chat") -> ServiceFolder:
    return ServiceFolder(settings.services, name)


def bring(release: Release, settings: Settings) -> RolloutResult:
    folder = folder_of(settings, release.name)
    with open_target(Target.DOCKER, folder, settings) as target:
        return roll_out(release, folder, target, open_service(folder), read_keys=read_keys)


def running(settings: Settings, name: str = "chat") -> Running | None:
    with open_target(Target.DOCKER, folder_of(settings, name), settings) as target:
        return target.running()


def containers(settings: Settings, name: str = "chat") -> list[dict[str, Any]]:
    """Everything that Docker says of the service's containers."""
    label = f"slipway.folder={folder_of(settings, name).root}"
    with docker_client() as client:
        return [found.attrs for found in client.containers.list(all=True, filters={"label": label})]


@contextlib.contextmanager
def frozen(settings: Settings) -> Iterator[Callable[[], None]]:
    """The service's only container stands still until the yielded function is called, or to the end."""
    (found,) = containers(settings)
    with docker_client() as client:
        container = client.containers.get(found["Id"])
        container.pause()
        try:
            yield container.unpause
        finally:
            with contextlib.suppress(docker.errors.APIError):  # it runs, or is gone
                container.unpause()


def accepts(endpoint: str) -> bool:
    """Whether anything listens at an endpoint."""
    url = httpx.URL(endpoint)
    with socket.socket() as connection:
        return connection.connect_ex((url.host, url.port or 80)) == 0


def complete(endpoint: str | None, name: str = "chat") -> str:
    with EngineApi(endpoint or "") as api:
        return api.complete(name, "The", 4).text


@pytest.mark.parametrize("host", ["::1", "::", "localhost"])
def test_every_kind_of_address_serves_and_is_switched(host: str, make: Make, settings: Settings) -> None:
    result = bring(make(host=host), settings)
    assert complete(result.endpoint)
    replaced = bring(make(model=1, host=host), settings)
    assert (replaced.verdict, replaced.endpoint) == (RolloutVerdict.SERVING, result.endpoint)
    assert complete(result.endpoint)
    seen = running(settings)
    assert seen is not None
    assert (seen.host, seen.endpoint) == (host, result.endpoint)


def test_a_release_serves_from_a_container_with_limits(make: Make, settings: Settings) -> None:
    release = make(hardware={"memory": "300Mi", "cpus": 2}, pids=64)
    result = bring(release, settings)
    assert (result.verdict, result.action) == (RolloutVerdict.SERVING, RolloutAction.START)
    assert complete(result.endpoint)
    (container,) = containers(settings)
    host, config = container["HostConfig"], container["Config"]
    assert release.image is not None
    assert container["Image"] == release.image
    assert config["User"] not in ("", "0", "0:0", "root")
    assert config["Labels"]["slipway.service"] == "chat"
    assert config["Labels"]["slipway.release"] == release.id
    assert host["Memory"] == host["MemorySwap"] == 300 << 20
    assert host["NanoCpus"] == 2 * 10**9
    assert host["PidsLimit"] == 64
    assert host["ShmSize"] == 64 << 20
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert list(host["Tmpfs"]) == ["/tmp"]
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert host["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "3"}
    assert [(mount["Source"], mount["RW"]) for mount in container["Mounts"]] == [
        (str(release.launch.model_file), False)
    ]
    published = container["NetworkSettings"]["Ports"]["8000/tcp"]
    assert [binding["HostIp"] for binding in published] == ["127.0.0.1"]
    seen = running(settings)
    assert seen is not None
    assert (seen.release, seen.endpoint, seen.up, seen.restarts) == (release.id, result.endpoint, True, 0)
    assert seen.pid == container["State"]["Pid"]


def test_a_chat_template_of_the_users_is_served_from_a_container(make: Make, settings: Settings) -> None:
    text = "{% for message in messages %}<{{ message['content'] }}>{% endfor %}"
    kept = keep_template(settings.home, text)
    plain = make()
    chat = ChatTemplate(digest=Template(text, "").digest, file=kept)
    result = bring(
        plain.model_copy(update={"config": plain.config.model_copy(update={"chat": chat})}), settings
    )
    assert result.verdict == RolloutVerdict.SERVING, result.reason
    body = {"messages": [{"role": "user", "content": "Hello"}]}
    answer = httpx.post(f"{result.endpoint}/apply-template", json=body, timeout=60)
    assert answer.json()["prompt"] == "<Hello>"
    (container,) = containers(settings)
    assert {mount["Source"]: mount["RW"] for mount in container["Mounts"]}[str(kept)] is False


def test_a_model_in_a_closed_home_is_served(
    make: Make, settings: Settings, random_ggufs: tuple[Path, Path]
) -> None:
    """Docker's daemon finds what it mounts; the container's user meets only the file itself."""
    make_home(settings.home)
    model = settings.candidates / "model.gguf"
    model.parent.mkdir()
    shutil.copy(random_ggufs[0], model)
    release = make()
    moved = release.launch.model_copy(update={"model_file": model})
    result = bring(release.model_copy(update={"launch": moved}), settings)
    assert settings.home.stat().st_mode & 0o777 == 0o700
    assert complete(result.endpoint)


def test_the_same_again_changes_nothing(make: Make, settings: Settings) -> None:
    release = make()
    first = bring(release, settings)
    (before,) = containers(settings)
    again = bring(make(), settings)
    assert (again.action, again.endpoint) == (RolloutAction.NOTHING, first.endpoint)
    (after,) = containers(settings)
    assert after["Id"] == before["Id"]


def test_the_limits_hold_inside(make: Make, settings: Settings) -> None:
    bring(make(), settings)
    (container,) = containers(settings)
    with docker_client() as client:
        inside = client.containers.get(container["Id"])
        code, output = inside.exec_run(["/opt/engine/bin/python", "-c", "open('/opt/x', 'w')"])
        assert code == 1
        assert b"Read-only file system" in output
        code, output = inside.exec_run(
            ["/opt/engine/bin/python", "-c", "print(open('/proc/self/status').read())"]
        )
    status = dict(line.split(":\t") for line in output.decode().splitlines() if ":\t" in line)
    assert int(status["CapEff"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Uid"].split()[0] != "0"


def test_memory_limit_kills_a_release_and_the_former_one_serves_on(make: Make, settings: Settings) -> None:
    previous = make()
    endpoint = bring(previous, settings).endpoint
    result = bring(make(hardware={"memory": "14Mi"}), settings)
    assert result.verdict is RolloutVerdict.ROLLED_BACK
    assert (result.serving, result.endpoint) == (previous.id, endpoint)
    assert re.fullmatch(r".*: it .*memory limit of 14 MiB .*; raise hardware\.memory", result.reason or "")
    assert complete(endpoint)
    assert len(containers(settings)) == 1


def test_redeploys_under_load_lose_no_request(make: Make, settings: Settings) -> None:
    releases = (make(), make(model=1), make(batch=3))
    endpoint = bring(releases[0], settings).endpoint or ""
    with Load(endpoint, "chat", clients=12) as load:
        for release in (*releases[1:], releases[0]):
            seen = load.good
            wait_until(lambda seen=seen: load.good > seen + 30, "requests are answered")
            result = bring(release, settings)
            assert (result.verdict, result.endpoint) == (RolloutVerdict.SERVING, endpoint)
            (container,) = containers(settings)
            assert container["Config"]["Labels"]["slipway.release"] == release.id
        seen = load.good
        wait_until(lambda: load.good > seen + 30, "requests are answered after the last switch")
    assert load.failures == []


def test_keys_are_checked_and_rotate_under_load_and_docker_knows_none(
    make: Make, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slipway = SlipwayCommand(capsys)
    first, second, third = "first-key-of-all", "second-key-of-all", "third-key-of-all"
    keys = tmp_path / "keys"
    keys.touch(0o600)
    keys.write_text(f"{first}\n{second}\n")

    def lock(release: Release) -> Release:
        serving = Serving(api_key=f"file:{keys}")
        return release.model_copy(update={"spec": release.spec.model_copy(update={"serving": serving})})

    def opened(endpoint: str) -> list[bool]:
        headers = [{}, *({"x-api-key": key} for key in (first, second, third))]
        return [httpx.get(f"{endpoint}/v1/models", headers=one).status_code == 200 for one in headers]

    endpoint = bring(make(), settings).endpoint or ""
    assert opened(endpoint) == [True] * 4
    (proxy,) = proxies(settings.home)
    assert bring(lock(make()), settings).endpoint == endpoint
    assert opened(endpoint) == [False, True, True, False]
    with Load(endpoint, "chat", clients=4, key=first) as load:
        keys.write_text(f"{first}\n{third}\n")
        slipway("keys", "chat")
        assert opened(endpoint) == [False, True, False, True]
        assert bring(lock(make(model=1)), settings).verdict is RolloutVerdict.SERVING
        slipway("rollback", "chat")
        seen = load.good
        wait_until(lambda: load.good > seen + 4, "requests are answered after the last change")
    assert load.failures == []
    assert proxies(settings.home) == [proxy]
    assert (
        check(folder_of(settings), LocalInstruments(folder_of(settings)), None).verdict
        is HealthVerdict.HEALTHY
    )
    assert slipway.json("status", "chat")["locked"] is True
    keys.unlink()
    proxy.kill()
    slipway("start", "chat")
    assert opened(endpoint) == [False, True, False, True]
    known = str(containers(settings)) + " ".join(proxies(settings.home)[0].cmdline())
    kept = [path.read_bytes().decode(errors="replace") for path in settings.home.rglob("*") if path.is_file()]
    assert not [key for key in (first, second, third) if any(key in text for text in (known, *kept))]


def test_a_failed_gate_leaves_the_former_one_serving(make: Make, settings: Settings, tmp_path: Path) -> None:
    previous = make()
    endpoint = bring(previous, settings).endpoint or ""
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + bytes(4096))
    broken = make().model_copy(
        update={
            "launch": previous.launch.model_copy(update={"model_file": damaged}),
            "candidate_digest": digest_of_file(damaged),
        }
    )
    with Load(endpoint, "chat", clients=4) as load:
        result = bring(broken, settings)
        seen = load.good
        wait_until(lambda: load.good > seen + 20, "requests are answered")
    assert load.failures == []
    assert (result.verdict, result.serving) == (RolloutVerdict.ROLLED_BACK, previous.id)
    assert result.reason == snapshot("the engine died while starting: exit status 1")
    assert "failed to load model" in (result.log_tail or "")
    assert len(containers(settings)) == 1


def test_a_first_release_that_fails_leaves_nothing(make: Make, settings: Settings) -> None:
    result = bring(make(hardware={"memory": "14Mi"}), settings)
    assert (result.verdict, result.serving, result.endpoint) == (RolloutVerdict.ROLLED_BACK, None, None)
    assert leftovers(settings.home) == []
    assert running(settings) is None


def test_rollback_makes_a_removed_image_anew(make: Make, settings: Settings) -> None:
    first, second = make(), make(model=1)
    endpoint = bring(first, settings).endpoint
    assert bring(second, settings).previous == first.id
    before = complete(endpoint)
    stored = folder_of(settings).release(first.id)
    assert stored is not None
    gone = stored.model_copy(update={"image": "sha256:" + "0" * 64})
    result = bring(gone, settings)
    assert (result.verdict, result.endpoint, result.previous) == (RolloutVerdict.SERVING, endpoint, second.id)
    assert complete(endpoint) != before


def test_stop_removes_everything(make: Make, settings: Settings) -> None:
    result = bring(make(), settings)
    folder = folder_of(settings)
    with open_target(Target.DOCKER, folder, settings) as target:
        assert target.log_tail(3).count("\n") == 2
        assert stop_service(folder, target, drain_s=5)
        assert leftovers(settings.home) == []
        assert not (folder.root / "proxy").exists()
        assert folder.state() is None
        assert "llama.cpp" in target.log_tail(2000) or "slot" in target.log_tail(2000)
        assert not stop_service(folder, target, drain_s=5)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{result.endpoint}/health")


def test_stop_lets_requests_end(make: Make, settings: Settings) -> None:
    endpoint = bring(make(), settings).endpoint or ""
    answers: list[httpx.Response] = []
    body = {"model": "chat", "prompt": "The", "max_tokens": 240, "ignore_eos": True}

    def ask() -> None:
        answers.append(httpx.post(f"{endpoint}/v1/completions", json=body, timeout=60))

    with (
        frozen(settings) as thaw,  # so that the request is open when the stop comes, and ends after it
        open_target(Target.DOCKER, folder_of(settings), settings) as target,
    ):
        asking = threading.Thread(target=ask)
        asking.start()
        wait_until(
            lambda: (seen := target.running()) is not None and seen.open_requests, "the request is at work"
        )
        stopping = threading.Thread(target=target.stop, kwargs={"drain_s": 30})
        stopping.start()
        wait_until(lambda: not accepts(endpoint), "the address is given up")
        assert not answers
        thaw()
        stopping.join()
    asking.join()
    assert [answer.status_code for answer in answers] == [200]
    assert answers[0].json()["usage"]["completion_tokens"] == 240


def test_two_services_side_by_side(make: Make, settings: Settings) -> None:
    endpoints = {name: bring(make(name), settings).endpoint for name in ("left", "right")}
    assert len(set(endpoints.values())) == 2
    folder = folder_of(settings, "left")
    with open_target(Target.DOCKER, folder, settings) as target:
        stop_service(folder, target, drain_s=5)
    assert complete(endpoints["right"], "right")
    assert containers(settings, "left") == []


@pytest.mark.parametrize(
    ("killed_in", "then"),
    [
        ("ContainerService.switch", "the same"),
        ("attempt.write_state", "the previous"),
        ("ContainerService.settle", "the same"),
        ("ContainerService._sweep", "the same"),
        ("ContainerService._sweep", "the previous"),
    ],
)
def test_a_killed_rollout_is_finished_or_undone(
    killed_in: str, then: str, make: Make, settings: Settings, tmp_path: Path
) -> None:
    previous, wanted = make(), make(model=1)
    endpoint = bring(previous, settings).endpoint or ""
    document = tmp_path / "wanted.json"
    document.write_text(wanted.model_dump_json(by_alias=True))
    code = f"""
        import os, signal, sys
        from pathlib import Path
        from blocks.engine.api import EngineApi, is_silent
        from blocks.services.targets import open_target
        from tasks.core.release import Release, ServiceFolder
        from tasks.core.settings import Settings
        from tasks.rollout import apply, attempt
        from tasks.rollout.container.apply import ContainerService
        settings = Settings.load()
        release = Release.model_validate_json(Path(sys.argv[1]).read_bytes())
        folder = ServiceFolder(settings.services, release.name)
        die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        with open_target(release.target, folder, settings) as target:
            target.claim(release.spec.rollout.host, None)
            {killed_in} = die
            target.claim = lambda *_: folder.state().port
            apply.roll_out(release, folder, target, EngineApi)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(code), document], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert complete(endpoint)
    state = folder_of(settings).state()
    assert state is not None
    in_drain = killed_in == "ContainerService._sweep"
    assert (state.release, state.previous) == ((wanted.id, previous.id) if in_drain else (previous.id, None))
    after = wanted if then == "the same" else previous
    result = bring(after, settings)
    assert (result.verdict, result.endpoint) == (RolloutVerdict.SERVING, endpoint)
    assert complete(endpoint)
    (container,) = containers(settings)
    assert container["Config"]["Labels"]["slipway.release"] == after.id
    assert container["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
    assert len(proxies(settings.home)) == 1


def test_a_dead_proxy_comes_back_with_what_it_served(make: Make, settings: Settings) -> None:
    release = make()
    bring(make(model=1), settings)
    endpoint = bring(release, settings).endpoint
    (before,) = containers(settings)
    (proxy,) = proxies(settings.home)
    proxy.kill()
    wait_until(lambda: running(settings) is None, "the proxy is gone")
    result = bring(release, settings)
    assert (result.verdict, result.endpoint) == (RolloutVerdict.SERVING, endpoint)
    (after,) = containers(settings)
    assert after["Id"] == before["Id"]
    assert complete(endpoint)


def test_an_engine_that_dies_is_started_again_at_the_same_address(make: Make, settings: Settings) -> None:
    endpoint = bring(make(), settings).endpoint
    seen = running(settings)
    assert seen is not None
    assert seen.pid is not None
    os.kill(seen.pid, signal.SIGKILL)

    def back() -> bool:
        now = running(settings)
        with EngineApi(endpoint or "") as api:
            return now is not None and now.restarts == 1 and api.ready()

    wait_until(back, "the engine is back")
    assert complete(endpoint)


def test_a_container_is_checked_and_sampled_through_its_restarts(make: Make, settings: Settings) -> None:
    release = make()
    bring(release, settings)
    folder = folder_of(settings)
    state = folder.state()
    assert state is not None
    result = check(folder, LocalInstruments(folder), None)
    assert (result.verdict, result.samples.process.alive) == (HealthVerdict.HEALTHY, True)
    assert result.limits.memory_bytes == 512 << 20
    assert 1e6 < (result.samples.process.memory_bytes or 0) < 512 << 20
    (container,) = containers(settings)
    found = processes_of(folder, state, running(settings), period_s=0.05)
    assert (found.kind, found.id) == ("container", container["Id"])
    start_sampler(folder, found)
    try:
        wait_until(lambda: len(read_runs(folder.samples)) == 1, "the container is sampled")
        os.kill(container["State"]["Pid"], signal.SIGKILL)
        wait_until(lambda: len(read_runs(folder.samples)) > 1, "its next life is a run of its own")
        # A sample may fall into the moment in which one life ends or the next one begins: there is little then, and
        # the process that makes the container's first one may be taken for a life of its own.
        wait_until(lambda: max(read_runs(folder.samples)[-1].bytes_) > 1e6, "the next life is sampled, too")
    finally:
        stop_sampler(folder)
    first, *_, last = read_runs(folder.samples)
    assert 1e6 < max(first.bytes_) < 512 << 20
    assert max(last.bytes_) < 512 << 20


def test_a_taken_port_is_refused_before_anything_starts(make: Make, settings: Settings) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(PortTakenError, match=f"port {port} of 127.0.0.1 is taken by"):
            bring(make(port=port), settings)
        assert leftovers(settings.home) == []


def test_a_service_moves_to_another_port(make: Make, settings: Settings) -> None:
    previous = bring(make(), settings)
    port = free_port()
    moved = bring(make(port=port), settings)
    assert moved.endpoint == f"http://127.0.0.1:{port}"
    assert complete(moved.endpoint)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{previous.endpoint}/health")
    assert len(containers(settings)) == len(proxies(settings.home)) == 1


def test_a_failed_move_stays_where_it_was(make: Make, settings: Settings) -> None:
    previous = make()
    endpoint = bring(previous, settings).endpoint
    port = free_port()
    result = bring(make(port=port, hardware={"memory": "14Mi"}), settings)
    assert (result.verdict, result.serving, result.endpoint) == (
        RolloutVerdict.ROLLED_BACK,
        previous.id,
        endpoint,
    )
    assert complete(endpoint)
    assert len(containers(settings)) == len(proxies(settings.home)) == 1


def test_what_a_killed_build_left_is_swept_also_where_its_image_is_there(
    make: Make, settings: Settings
) -> None:
    make()
    (settings.home / "images" / "of-a-killed-build.part" / "site").mkdir(parents=True)
    make()
    assert list((settings.home / "images").iterdir()) == []


@pytest.mark.parametrize(
    "lines",
    [
        ['ENTRYPOINT ["python3"]', 'CMD ["-c", "pass"]'],
        ["USER 1000"],
        ["WORKDIR /root", "STOPSIGNAL SIGKILL", "HEALTHCHECK CMD false", "ENV PYTHONHOME=/no PYTHONPATH=/no"],
    ],
    ids=["entry point", "user", "others"],
)
def test_what_a_base_image_says_about_its_use_is_taken_back(
    lines: list[str], make: Make, settings: Settings, base_image: str
) -> None:
    with docker_client() as client:
        dockerfile = "\n".join([f"FROM {base_image}", *lines])
        base, _ = client.images.build(fileobj=_file(dockerfile), rm=True, network_mode="none")
        release = make(base_image=str(base.id))
        try:
            result = bring(release, settings)
            assert result.verdict == RolloutVerdict.SERVING, result.log_tail
            folder = settings.services / "chat"
            (container,) = client.containers.list(filters={"label": f"{FOLDER_LABEL}={folder}"})
            assert "Health" not in container.attrs["State"]
            assert container.attrs["Config"]["StopSignal"] == "SIGTERM"
        finally:
            with open_target(Target.DOCKER, ServiceFolder(settings.services, "chat"), settings) as target:
                stop_service(ServiceFolder(settings.services, "chat"), target, drain_s=0)
            client.images.remove(str(release.image), force=True)  # and what it was built on: that has no name


def test_a_base_image_without_a_system_library(make: Make, settings: Settings, base_image: str) -> None:
    with docker_client() as client:
        name = "slipway/test-without-libgomp"
        dockerfile = f"FROM {base_image}\nRUN rm /usr/lib/*/libgomp.so.1*\n"
        client.images.build(fileobj=_file(dockerfile), tag=name, rm=True, network_mode="none")
        try:
            with pytest.raises(RolloutError) as caught:
                make(base_image=name)
        finally:
            client.images.remove(name)
    assert str(caught.value) == snapshot(
        "the base image slipway/test-without-libgomp lacks a system library that the engine needs (use "
        "a base image that contains libgomp1, libstdc++6: infra/images/base.sh makes one)"
    )
    assert "libgomp.so.1" in (caught.value.detail or "")
    assert list((settings.home / "images").iterdir()) == []


def test_a_base_image_without_the_right_python(make: Make, base_image: str) -> None:
    with docker_client() as client:
        name = "slipway/test-without-python"
        client.images.build(
            fileobj=_file(f"FROM {base_image}\nRUN rm /usr/bin/python3\n"),
            tag=name,
            rm=True,
            network_mode="none",
        )
        try:
            with pytest.raises(RolloutError, match="no image could be built on slipway/test-without-python"):
                make(base_image=name)
        finally:
            client.images.remove(name)


def test_a_build_writes_no_file_that_a_kill_would_leave(
    base_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker's own archive of the context has a name while it is sent."""
    (context := tmp_path / "context").mkdir()
    (context / "Dockerfile").write_text(f"FROM {base_image}\nLABEL slipway.test=context\n")
    plan = ImagePlan(
        name="slipway/test-context", dockerfile="", pins=(), lock=tmp_path, python="3.11", platform="", files={},
        system_libraries=(),
        base_image=base_image,
    )  # fmt: skip
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    named: list[str] = []
    monkeypatch.setattr("docker.api.client.APIClient._post", watched(APIClient._post, temporary, named))
    with DockerEngine.connect() as docker, docker_client() as client:
        docker.build(plan, context)
        assert client.images.get(plan.name).labels["slipway.test"] == "context"
        client.images.remove(plan.name)
    assert named == []


def watched(post: Callable[..., Any], folder: Path, named: list[str]) -> Callable[..., Any]:
    """The same call, which notes what lies in the folder while it is made."""

    def posted(*arguments: Any, **options: Any) -> Any:
        named.extend(path.name for path in folder.iterdir())
        return post(*arguments, **options)

    return posted


def test_a_base_image_that_cannot_be_had(make: Make) -> None:
    with pytest.raises(NetworkError) as caught:
        make(base_image="127.0.0.1:9/nothing:here")
    assert str(caught.value) == snapshot(
        "the base image 127.0.0.1:9/nothing:here is not on this host and cannot be pulled "
        "(infra/images/base.sh makes slipway/base:bookworm without a registry: name it in "
        "rollout.base_image)"
    )


def test_a_gpu_that_docker_cannot_give(make: Make, settings: Settings) -> None:
    with docker_client() as client:
        if "nvidia" in client.info()["Runtimes"]:
            pytest.skip("this Docker engine gives GPUs")
    release = make(hardware={"gpus": 1})
    with pytest.raises(MissingToolError) as caught:
        bring(release, settings)
    assert str(caught.value) == snapshot(
        "the release needs 1 GPU, but this Docker engine cannot provide any (install the NVIDIA container "
        "toolkit, run `nvidia-ctk runtime configure --runtime=docker` and restart Docker, or set "
        "hardware.gpus: 0)"
    )
    assert leftovers(settings.home) == []


def _file(text: str) -> io.BytesIO:
    return io.BytesIO(text.encode())


def start(settings: Settings) -> RolloutResult:
    folder = folder_of(settings)
    with open_target(target_of(folder), folder, settings) as target:
        return start_service(folder, target, EngineApi)


def kill_proxy(settings: Settings) -> None:
    (proxy,) = proxies(settings.home)
    proxy.kill()
    wait_until(lambda: not proxies(settings.home), "the proxy is gone")


def end_container(settings: Settings) -> None:
    """As Docker's daemon does when it ends: a container that ends so exits with 0."""
    (found,) = containers(settings)
    with docker_client() as client:
        client.containers.get(found["Id"]).stop(timeout=20)


def remove_container(settings: Settings) -> None:
    (found,) = containers(settings)
    with docker_client() as client:
        client.containers.get(found["Id"]).remove(force=True)


LOSSES: dict[str, tuple[Callable[[Settings], None], ...]] = {
    "the proxy": (kill_proxy,),
    "the container ended": (end_container,),
    "both": (kill_proxy, end_container),
    "the container removed": (remove_container,),
    "all": (kill_proxy, remove_container),
}


def stop(settings: Settings) -> None:
    folder = folder_of(settings)
    with open_target(target_of(folder), folder, settings) as target:
        assert stop_service(folder, target, drain_s=5)
    assert leftovers(settings.home) == []


def test_what_is_lost_or_stopped_is_brought_back_by_start(make: Make, settings: Settings) -> None:
    previous, release = make(model=1), make()
    bring(previous, settings)
    endpoint = bring(release, settings).endpoint
    for loss in (*LOSSES.values(), (stop,)):
        for lose in loss:
            lose(settings)
        result = start(settings)
        assert (result.verdict, result.serving, result.endpoint) == (
            RolloutVerdict.SERVING, release.id, endpoint,
        )  # fmt: skip
        assert result.previous == previous.id or loss == (stop,)
        assert complete(endpoint)
        (container,) = containers(settings)
        assert container["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
        assert len(proxies(settings.home)) == 1


def test_no_death_of_an_engine_is_the_last(make: Make, settings: Settings) -> None:
    endpoint = bring(make(), settings).endpoint
    for deaths in range(1, 8):
        seen = wait_until(lambda: (now := running(settings)) and now.up and now, "it runs", timeout_s=60)
        os.kill(seen.pid or 0, signal.SIGKILL)
        wait_until(
            lambda deaths=deaths: (now := running(settings)) and now.restarts >= deaths,
            "the death is counted",
            timeout_s=60,
        )
    with EngineApi(endpoint or "") as api:
        wait_until(api.ready, "it is back", timeout_s=60)
    assert complete(endpoint)


def test_a_hung_engine_is_started_again(make: Make, settings: Settings) -> None:
    endpoint = bring(make(), settings).endpoint or ""
    seen = running(settings)
    assert seen is not None
    os.kill(seen.pid or 0, signal.SIGSTOP)
    answers: list[int] = []

    def ask() -> None:
        body = {"model": "chat", "prompt": "The", "max_tokens": 4}
        answers.append(httpx.post(f"{endpoint}/v1/completions", json=body, timeout=60).status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    with open_target(Target.DOCKER, folder_of(settings), settings) as target:
        assert isinstance(target, Unwatched)
        wait_until(lambda: (now := target.running()) and now.open_requests, "the request waits")
        step, past = next_step(Past(), look_at(target, partial(is_silent, timeout_s=0.5)))
        assert step is Step.NOTHING
        step, past = next_step(past, look_at(target, partial(is_silent, timeout_s=0.5)))
        assert step is Step.RESTART_ENGINE
        target.restart()
        with EngineApi(endpoint) as api:
            wait_until(api.ready, "the engine is back")
        assert complete(endpoint)
        assert next_step(past, look_at(target, is_silent)) == (Step.NOTHING, Past())
    asking.join()
    assert answers == [502]  # whoever waited is told


PROXY_FILES = (
    "current",
    "{proxy}/route.json",
    "{proxy}/haproxy.cfg",
    "{proxy}/haproxy.pid",
    "{proxy}/admin.sock",
)


@pytest.mark.parametrize("number", range(len(PROXY_FILES)), ids=PROXY_FILES)
def test_a_damaged_file_of_the_proxy_fails_nothing_and_is_healed(
    number: int, make: Make, settings: Settings
) -> None:
    name = PROXY_FILES[number]
    release = make()
    endpoint = bring(release, settings).endpoint or ""
    (before,) = containers(settings)
    folder = folder_of(settings).root / "proxy"
    for damage in ("a folder", ("empty", "half", "missing")[number % 3]):
        (proxy,) = [path.name for path in folder.iterdir() if path.is_dir() and path.name != "current"]
        path = folder / name.format(proxy=proxy)
        data = path.read_bytes() if path.is_file() else b"half"
        with Load(endpoint, "chat", clients=2) as load:
            path.unlink(missing_ok=True)  # what only a start of the proxy needs is made anew then
            if damage == "a folder":
                path.mkdir()
            elif damage != "missing":
                path.write_bytes(b"" if damage == "empty" else data[: len(data) // 2])
            seen = load.good
            wait_until(lambda load=load, seen=seen: load.good > seen + 5, "requests are answered")
        assert load.failures == []
        assert start(settings).serving == release.id
        assert bring(release, settings).action is RolloutAction.NOTHING
        assert complete(endpoint)
        (after,) = containers(settings)
        assert after["Id"] == before["Id"]
        assert len(proxies(settings.home)) == 1
    kill_proxy(settings)
    assert start(settings).endpoint == endpoint
    assert complete(endpoint)
    # Nor does it keep the service from being stopped.
    (proxy,) = [path.name for path in folder.iterdir() if path.is_dir()]
    (folder / name.format(proxy=proxy)).unlink()
    stop(settings)
