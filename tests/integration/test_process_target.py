"""`target: process` with the real engine: everything a service goes through."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from random import Random

import psutil
import pytest
from inline_snapshot import snapshot
from load import Load
from releases import make_release
from strays import engines_of, processes_of, proxies_of, supervisors_of
from waiting import wait_until

from blocks.engine.api import EngineApi
from blocks.processes.ports import free_port
from blocks.services.supervisor import SupervisedService
from tasks.core.errors import BusyError, ModelError, PortTakenError, RolloutError
from tasks.core.release import Release, ServiceFolder
from tasks.core.verdicts import RolloutVerdict
from tasks.rollout.apply import roll_out, stop_service
from tasks.rollout.models import RolloutAction, RolloutResult, Running

pytestmark = pytest.mark.engine

Services = Callable[[str], ServiceFolder]


@pytest.fixture
def ggufs(random_ggufs: tuple[Path, Path], slipway_home: Path) -> tuple[Path, Path]:
    """Copies below the test's home, so that each of its engines can be told by its command line."""
    folder = slipway_home / "candidates"
    folder.mkdir(parents=True)
    return tuple(Path(shutil.copy(file, folder)) for file in random_ggufs)  # type: ignore[return-value]


@pytest.fixture
def first(engine_python: Path, ggufs: tuple[Path, Path]) -> Release:
    return make_release(engine_python, ggufs[0])


@pytest.fixture
def second(engine_python: Path, ggufs: tuple[Path, Path]) -> Release:
    return make_release(engine_python, ggufs[1])


def bring(release: Release, folder: ServiceFolder) -> RolloutResult:
    with SupervisedService(folder) as target:
        return roll_out(release, folder, target, EngineApi)


def running(folder: ServiceFolder) -> Running:
    with SupervisedService(folder) as target:
        found = target.running()
    assert found is not None
    return found


def complete(endpoint: str, model: str = "chat") -> str:
    with EngineApi(endpoint) as api:
        return api.complete(model, "The", 4).text


def test_a_release_serves_and_the_same_again_changes_nothing(first: Release, services: Services) -> None:
    folder = services("chat")
    result = bring(first, folder)
    assert result.verdict is RolloutVerdict.SERVING
    assert result.action is RolloutAction.START
    assert result.completion
    assert complete(result.endpoint or "")
    state = folder.state()
    assert state is not None
    assert (state.release, state.previous, state.endpoint) == (first.id, None, result.endpoint)
    assert folder.release(first.id) == first
    before = running(folder)
    again = bring(first, folder)
    assert again.action is RolloutAction.NOTHING
    assert running(folder) == before
    assert folder.state() == state


def test_a_switch_under_load_loses_no_request(first: Release, second: Release, services: Services) -> None:
    folder = services("chat")
    endpoint = bring(first, folder).endpoint or ""
    with Load(endpoint, "chat", clients=8) as load:
        for release in (second, first, second):
            seen = load.good
            wait_until(lambda seen=seen: load.good > seen + 20, "requests are answered")
            result = bring(release, folder)
            assert (result.verdict, result.endpoint) == (RolloutVerdict.SERVING, endpoint)
        seen = load.good
        wait_until(lambda: load.good > seen + 20, "requests are answered after the last switch")
    assert load.failures == []
    assert running(folder).release == second.id
    wait_until(lambda: len(engines_of(folder.root.parent.parent)) == 1, "the previous engines ended")


def test_a_release_that_does_not_load_leaves_the_former_one_serving(
    first: Release, engine_python: Path, ggufs: tuple[Path, Path], services: Services
) -> None:
    folder = services("chat")
    endpoint = bring(first, folder).endpoint or ""
    ggufs[1].write_bytes(b"GGUF" + bytes(4096))
    broken = make_release(engine_python, ggufs[1])
    with Load(endpoint, "chat", clients=4) as load:
        result = bring(broken, folder)
        wait_until(lambda: load.good > 20, "requests are answered")
    assert load.failures == []
    assert result.verdict is RolloutVerdict.ROLLED_BACK
    assert (result.serving, result.endpoint) == (first.id, endpoint)
    assert result.reason == snapshot("the engine died while starting: exit status 1")
    assert "failed to load model" in (result.log_tail or "")
    assert not folder.release_file(broken.id).exists()
    state = folder.state()
    assert state is not None
    assert state.release == first.id


def test_a_first_release_that_does_not_load_leaves_nothing(
    engine_python: Path, ggufs: tuple[Path, Path], services: Services, slipway_home: Path
) -> None:
    ggufs[0].write_bytes(b"not a model")
    result = bring(make_release(engine_python, ggufs[0]), services("chat"))
    assert (result.verdict, result.serving, result.endpoint) == (RolloutVerdict.ROLLED_BACK, None, None)
    assert "invalid magic characters" in (result.log_tail or "")
    assert services("chat").state() is None
    wait_until(lambda: not processes_of(slipway_home), "nothing runs")


def test_a_model_file_that_changed_is_not_served(first: Release, second: Release, services: Services) -> None:
    """The engine itself would load damaged weights without a word."""
    bring(first, services("chat"))
    data = bytearray(second.launch.model_file.read_bytes())
    data[-100] ^= 0xFF
    second.launch.model_file.write_bytes(data)
    with pytest.raises(ModelError, match="has changed since it was measured"):
        bring(second, services("chat"))
    assert running(services("chat")).release == first.id


def test_an_engine_that_crashes_is_started_again(
    first: Release, services: Services, slipway_home: Path
) -> None:
    folder = services("chat")
    endpoint = bring(first, folder).endpoint or ""
    for number in (1, 2):
        crashed = engines_of(slipway_home)[0]
        crashed.kill()
        wait_until(lambda number=number: running(folder).restarts == number, "the crash is counted")
        wait_until(lambda: running(folder).up, "the engine runs again")
        with EngineApi(endpoint) as api:
            wait_until(api.ready, "the service answers again")
        assert complete(endpoint)
    assert "killed by SIGKILL" in (folder.logs / "supervisor.log").read_text()


def test_requests_wait_while_the_engine_is_started_again(
    first: Release, services: Services, slipway_home: Path
) -> None:
    folder = services("chat")
    endpoint = bring(first, folder).endpoint or ""
    engines_of(slipway_home)[0].kill()
    wait_until(lambda: not running(folder).up, "its death is known")
    assert complete(endpoint)


@pytest.mark.parametrize("how", ["killed", "with its guard", "stopped", "its socket is removed"])
def test_a_proxy_that_fails_is_replaced_at_the_same_address(
    how: str, first: Release, services: Services, slipway_home: Path
) -> None:
    folder = services("chat")
    endpoint = bring(first, folder).endpoint or ""
    (proxy,) = proxies_of(slipway_home)
    if how == "killed":
        proxy.kill()
    elif how == "with its guard":
        proxy.parent().kill()
    elif how == "stopped":
        proxy.suspend()
    else:
        next(folder.root.glob("proxy/*/admin.sock")).unlink()
    wait_until(lambda: set(proxies_of(slipway_home)) - {proxy}, "there is another one")
    assert complete(endpoint)
    assert running(folder).restarts == 0, "the engine went on"


def test_a_new_release_ends_with_the_command_that_was_killed(
    first: Release, second: Release, services: Services, tmp_path: Path
) -> None:
    folder = services("chat")
    endpoint = bring(first, folder).endpoint or ""
    models = second.launch.model_file.parent
    document = tmp_path / "second.json"
    document.write_text(second.model_dump_json(by_alias=True))
    command = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from blocks.engine.api import EngineApi
        from blocks.services.supervisor import SupervisedService
        from tasks.core.release import Release, ServiceFolder

        release = Release.model_validate_json(Path(sys.argv[1]).read_bytes())
        service = SupervisedService(ServiceFolder(Path(sys.argv[2]), release.name))
        service.claim("127.0.0.1", None)
        new = service.start(release)
        while not EngineApi(new.base_url).ready():
            time.sleep(0.02)
        service.switch(new)
        print(new.base_url, flush=True)
        time.sleep(600)
        """
    )
    child = subprocess.Popen(
        [sys.executable, "-c", command, document, folder.root.parent], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline().startswith("http://127.0.0.1:")
        assert len(engines_of(models)) == 2
        with pytest.raises(BusyError):
            bring(second, folder)
        with Load(endpoint, "chat", clients=4) as load:
            wait_until(lambda: load.good > 20, "the new release answers")
            child.kill()
            wait_until(lambda: len(engines_of(models)) == 1, "the new release ended")
            seen = load.good
            wait_until(lambda: load.good > seen + 20, "the previous release answers")
        assert load.failures == []
    finally:
        child.kill()
        child.wait()
    assert running(folder).release == first.id
    assert complete(endpoint)
    assert bring(second, folder).verdict is RolloutVerdict.SERVING


ROLL_OUT = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from blocks.engine.api import EngineApi
    from blocks.services.supervisor import SupervisedService
    from tasks.core.release import Release, ServiceFolder
    from tasks.rollout.apply import roll_out

    release = Release.model_validate_json(Path(sys.argv[1]).read_bytes())
    folder = ServiceFolder(Path(sys.argv[2]), release.name)
    print("begins", flush=True)
    with SupervisedService(folder) as target:
        roll_out(release, folder, target, EngineApi)
    """
)


def test_a_rollout_killed_at_any_moment_is_finished_by_the_next(
    first: Release, second: Release, services: Services, slipway_home: Path, tmp_path: Path
) -> None:
    folder = services("chat")
    random = Random(52)
    for attempt in range(8):
        release = (first, second)[attempt % 2]
        document = tmp_path / "release.json"
        document.write_text(release.model_dump_json(by_alias=True))
        child = subprocess.Popen(
            [sys.executable, "-c", ROLL_OUT, document, folder.root.parent], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        child.stdout.readline()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=random.uniform(0, 0.5))
        child.kill()
        child.wait()
        result = bring(release, folder)
        assert (result.verdict, result.serving) == (RolloutVerdict.SERVING, release.id)
        assert complete(result.endpoint or "")
        wait_until(lambda: len(engines_of(slipway_home)) == 1, "one engine serves")
        assert len(supervisors_of(slipway_home)) == 1
        assert not list(slipway_home.rglob("*.part"))
    state = folder.state()
    assert state is not None
    assert (state.release, state.previous) == (second.id, first.id)


def test_a_killed_supervisor_leaves_no_engine_and_the_next_rollout_recovers(
    first: Release, second: Release, services: Services, slipway_home: Path
) -> None:
    folder = services("chat")
    endpoint = bring(first, folder).endpoint
    supervisors_of(folder.root)[0].kill()
    wait_until(lambda: not processes_of(slipway_home), "no engine outlives its supervisor")
    again = bring(first, folder)
    assert (again.verdict, again.endpoint) == (RolloutVerdict.SERVING, endpoint)
    assert again.action is RolloutAction.NOTHING  # the supervisor itself brought it back
    supervisors_of(folder.root)[0].kill()
    wait_until(lambda: not processes_of(slipway_home), "no engine outlives its supervisor")
    replaced = bring(second, folder)
    assert (replaced.verdict, replaced.endpoint, replaced.previous) == (
        RolloutVerdict.SERVING,
        endpoint,
        first.id,
    )
    wait_until(lambda: len(engines_of(slipway_home)) == 1, "one engine serves")


@pytest.mark.parametrize("host", ["::1", "::", "0.0.0.0", "localhost"])
def test_every_kind_of_address_serves_and_is_switched(
    host: str, engine_python: Path, ggufs: tuple[Path, Path], services: Services
) -> None:
    folder = services("chat")
    first, second = (make_release(engine_python, gguf, host=host) for gguf in ggufs)
    endpoint = bring(first, folder).endpoint
    assert endpoint is not None
    assert complete(endpoint)
    replaced = bring(second, folder)
    assert (replaced.verdict, replaced.endpoint) == (RolloutVerdict.SERVING, endpoint)
    assert complete(endpoint)
    state = folder.state()
    assert state is not None
    assert (state.host, state.endpoint, running(folder).endpoint) == (host, endpoint, endpoint)
    assert bring(second, folder).action is RolloutAction.NOTHING


def test_a_supervisor_told_to_end_takes_its_engine_along_and_is_brought_back(
    first: Release, services: Services, slipway_home: Path
) -> None:
    folder = services("chat")
    endpoint = bring(first, folder).endpoint
    supervisors_of(folder.root)[0].terminate()
    wait_until(lambda: not processes_of(slipway_home), "everything ended")
    assert bring(first, folder).endpoint == endpoint


def test_a_killed_guard_takes_its_engine_along(
    first: Release, services: Services, slipway_home: Path
) -> None:
    folder = services("chat")
    bring(first, folder)
    engine = engines_of(slipway_home)[0]
    os.kill(running(folder).pid or 0, signal.SIGKILL)
    wait_until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, "the engine died")
    wait_until(lambda: running(folder).up, "a new one runs")


def test_stop_ends_everything_and_a_deploy_serves_again(
    first: Release, services: Services, slipway_home: Path
) -> None:
    folder = services("chat")
    bring(first, folder)
    with SupervisedService(folder) as target:
        assert stop_service(folder, target, drain_s=5)
    assert processes_of(slipway_home) == []
    assert folder.state() is None
    with SupervisedService(folder) as target:
        assert target.running() is None
        assert not stop_service(folder, target, drain_s=5)
    assert bring(first, folder).verdict is RolloutVerdict.SERVING


def test_a_stop_lets_requests_finish(first: Release, services: Services) -> None:
    folder = services("chat")
    endpoint = bring(first, folder).endpoint or ""
    with Load(endpoint, "chat", clients=4) as load:
        wait_until(lambda: running(folder).open_requests, "requests are open")
        with SupervisedService(folder) as target:
            stop_service(folder, target, drain_s=20)
    # Refused before they began is what a stopped service does; cut in the middle is not.
    assert not [
        failure for failure in load.failures if "ConnectError" not in failure and "503" not in failure
    ]


def test_a_taken_port_is_refused_before_anything_starts(
    engine_python: Path, ggufs: tuple[Path, Path], services: Services, slipway_home: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as squatter:
        port = squatter.getsockname()[1]
        with pytest.raises(PortTakenError) as caught:
            bring(make_release(engine_python, ggufs[0], port=port), services("chat"))
    assert str(port) in caught.value.what
    assert f"(process {os.getpid()})" in caught.value.what
    assert caught.value.exit_code == 1
    assert processes_of(slipway_home) == []
    assert not services("chat").root.exists()


def test_a_taken_port_leaves_the_former_release_at_its_own(
    first: Release, engine_python: Path, ggufs: tuple[Path, Path], services: Services
) -> None:
    endpoint = bring(first, services("chat")).endpoint or ""
    with socket.create_server(("127.0.0.1", 0)) as squatter:
        release = make_release(engine_python, ggufs[1], port=squatter.getsockname()[1])
        with pytest.raises(PortTakenError):
            bring(release, services("chat"))
    assert complete(endpoint)


def test_a_service_moves_to_another_port(
    first: Release, engine_python: Path, ggufs: tuple[Path, Path], services: Services
) -> None:
    endpoint = bring(first, services("chat")).endpoint or ""
    port = free_port()
    moved = bring(make_release(engine_python, ggufs[0], port=port), services("chat"))
    assert moved.endpoint == f"http://127.0.0.1:{port}"
    assert complete(moved.endpoint)
    with EngineApi(endpoint) as api:
        assert not api.ready()


def test_a_service_in_a_deep_folder(
    engine_python: Path, ggufs: tuple[Path, Path], slipway_home: Path, services: Services
) -> None:
    """A Unix socket's own path may have 107 bytes at most."""
    name = "a" * 40
    deep = slipway_home.joinpath(*["deeper-than-most-people-would-ever-go"] * 4)
    folder = ServiceFolder(deep, name)
    try:
        assert len(str(folder.root)) > 200
        result = bring(make_release(engine_python, ggufs[0], name=name), folder)
        assert result.verdict is RolloutVerdict.SERVING
        assert running(folder).up
    finally:
        with SupervisedService(folder) as target:
            target.stop(drain_s=0)


def test_two_services_side_by_side(engine_python: Path, ggufs: tuple[Path, Path], services: Services) -> None:
    """One's name begins with the other's."""
    names = ("chat", "chat-long")
    results = [
        bring(make_release(engine_python, file, name=name), services(name))
        for name, file in zip(names, ggufs, strict=True)
    ]
    endpoints = [result.endpoint or "" for result in results]
    assert endpoints[0] != endpoints[1]
    with SupervisedService(services("chat")) as target:
        stop_service(services("chat"), target, drain_s=5)
    assert complete(endpoints[1], names[1])
    assert running(services("chat-long")).release == results[1].release


def test_a_service_that_was_settled_but_not_written_down_is_adopted(
    first: Release, second: Release, services: Services
) -> None:
    """What a kill between the last two steps of a rollout leaves."""
    folder = services("chat")
    bring(first, folder)
    state_before = folder.state_file.read_bytes()
    bring(second, folder)
    folder.state_file.write_bytes(state_before)
    result = bring(second, folder)
    assert (result.action, result.previous) == (RolloutAction.ADOPT, first.id)
    state = folder.state()
    assert state is not None
    assert (state.release, state.previous) == (second.id, first.id)


def test_secrets_of_the_command_do_not_reach_the_engine(
    first: Release, services: Services, slipway_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    bring(first, services("chat"))
    environment = engines_of(slipway_home)[0].environ()
    assert "AWS_SECRET_ACCESS_KEY" not in environment
    assert environment["OMP_WAIT_POLICY"] == "passive"


def test_a_supervisor_that_dies_in_the_middle_is_gone_or_explained(
    first: Release, services: Services
) -> None:
    folder = services("chat")
    bring(first, folder)
    with SupervisedService(folder) as target:
        assert target.running()
        supervisors_of(folder.root)[0].kill()
        with pytest.raises(RolloutError) as caught:
            target.start(first)
        assert target.running() is None
    assert caught.value.what == snapshot("the supervisor of chat does not answer")
