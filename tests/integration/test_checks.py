"""Health and leak checks of a service that really serves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from inline_snapshot import snapshot
from releases import make_release
from strays import engines_of, supervisors_of
from waiting import wait_until

from blocks.engine.api import EngineApi
from blocks.services.sampler import sample_service, sampler_pid, start_sampler, stop_sampler
from blocks.services.service_processes import ServiceProcesses, container_of, processes_of
from blocks.services.supervisor import SupervisedService
from blocks.storage.record_store import FolderRecordStore
from deployments.cli.main import main
from tasks.core.files import write_atomically
from tasks.core.records import new_record
from tasks.core.release import Release, ServiceFolder
from tasks.core.spec_kinds import Target
from tasks.core.verdicts import LeakVerdict, RolloutVerdict, StageName
from tasks.leaks.apply import read_runs
from tasks.leaks.models import LeakRequest
from tasks.leaks.plan import judge
from tasks.rollout.apply import roll_out, stop_service
from tasks.rollout.models import Running

pytestmark = pytest.mark.engine

PERIOD_S = 0.05


@pytest.fixture
def release(engine_python: Path, random_ggufs: tuple[Path, Path], slipway_home: Path) -> Release:
    """Below the test's home, so that its engine can be told by its command line; sampled quickly."""
    slipway_home.mkdir(mode=0o700)
    gguf = slipway_home / "candidates" / "model.gguf"
    gguf.parent.mkdir(parents=True)
    gguf.write_bytes(random_ggufs[0].read_bytes())
    made = make_release(engine_python, gguf)
    checks = made.spec.checks.model_copy(update={"sample_period_s": PERIOD_S})
    return made.model_copy(update={"spec": made.spec.model_copy(update={"checks": checks})})


@pytest.fixture
def service(release: Release, services: Callable[[str], ServiceFolder]) -> Iterator[ServiceFolder]:
    """A service that serves, and its sampler's end."""
    folder = services("chat")
    with SupervisedService(folder) as target:
        assert roll_out(release, folder, target, EngineApi).verdict is RolloutVerdict.SERVING
    yield folder
    stop_sampler(folder)


def slipway(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code and output of a command."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    printed = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, printed.out, printed.err


def health(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, object]]:
    code, out, _ = slipway("health", "chat", "--json", *options, capsys=capsys)
    return code, json.loads(out)


def records(home: Path) -> FolderRecordStore:
    return FolderRecordStore(home / "records")


def test_a_service_that_answers_is_healthy(
    service: ServiceFolder, slipway_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = health(capsys)
    assert (code, found["verdict"], found["findings"]) == (0, "healthy", [])
    (record,) = records(slipway_home).list(StageName.HEALTH)
    assert (record.id, record.outcome, record.subject) == (found["record"], "healthy", "chat")
    assert 1e6 < record.numbers["memory_bytes"].value < 1e9
    assert 0 < record.numbers["latency_ms"].value < 10_000
    code, out, _ = slipway("health", "chat", capsys=capsys)
    assert code == 0
    assert "chat is healthy" in out
    assert "time to first token of 5 requests" in out
    code, out, _ = slipway("health", "chat", "--contract", capsys=capsys)
    assert code == 0
    assert "contract: 14 of 14 hold on 3 samples" in out


def test_a_release_is_explained_by_its_records(
    release: Release,
    services: Callable[[str], ServiceFolder],
    slipway_home: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = services("chat")
    record = new_record(
        stage=StageName.BATCHING,
        subject="chat",
        host_fingerprint="h",
        inputs_digest="d",
        outcome="chosen",
        seconds=1,
    )
    records(slipway_home).put(record)
    with SupervisedService(folder) as target:
        roll_out(release.model_copy(update={"records": (record.id, "01GONE")}), folder, target, EngineApi)
    code, out, _ = slipway("kb", "explain", "chat", "--json", capsys=capsys)
    answer = json.loads(out)
    assert (code, answer["release"]) == (0, release.id)
    assert [row["id"] for row in answer["records"]] == [record.id, "01GONE"]
    assert answer["records"][0]["record"]["outcome"] == "chosen"
    code, out, _ = slipway("kb", "explain", "chat", capsys=capsys)
    assert code == 0
    assert record.id in out
    assert "not in this store" in out


def test_a_restart_degrades_until_it_has_been_seen(
    service: ServiceFolder, slipway_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = service.state()
    assert state is not None
    (engine,) = engines_of(slipway_home)
    engine.kill()

    def answers_again() -> bool:
        with EngineApi(state.endpoint) as api:
            return engines_of(slipway_home) not in ([], [engine]) and api.ready()

    wait_until(answers_again, "the supervisor starts the engine again")
    code, found = health(capsys)
    assert (code, found["verdict"]) == (0, "degraded")
    assert found["headline"] == "the engine died and was restarted once since the last check"
    code, found = health(capsys)
    assert (code, found["verdict"]) == (0, "healthy")
    seen = records(slipway_home).list(StageName.HEALTH)
    assert seen[1].consulted == (seen[0].id,)


def test_a_service_that_does_not_answer_is_unhealthy(
    service: ServiceFolder, slipway_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for supervisor in supervisors_of(slipway_home):
        supervisor.kill()
    wait_until(lambda: not engines_of(slipway_home), "the engine ends with its supervisor")
    code, found = health(capsys)
    assert (code, found["verdict"]) == (3, "unhealthy")
    assert [(row["level"], row["verdict"]) for row in found["findings"]] == [  # type: ignore[attr-defined]
        ("process", "unhealthy"),
        ("service", "unhealthy"),
        ("service", "unhealthy"),
    ]
    code, out, _ = slipway("health", "chat", capsys=capsys)
    assert code == 3
    assert "unhealthy: process: the engine's process is not running" in out


def test_a_stopped_or_unknown_service_is_not_found(
    service: ServiceFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    with SupervisedService(service) as target:
        stop_service(service, target, drain_s=0)
    answers = [slipway("health", name, capsys=capsys) for name in ("chat", "other")]
    assert [(code, err) for code, _, err in answers] == snapshot(
        [
            (
                2,
                "error: the service chat is not running: it was stopped\n  fix: list the services: slipway status\n",
            ),
            (
                2,
                "error: the service other is not running: it was never deployed\n  fix: list the services: slipway status\n",
            ),
        ]
    )


def test_the_sampler_outlives_its_caller_and_is_the_only_one(
    service: ServiceFolder, release: Release
) -> None:
    state = service.state()
    assert state is not None
    first = sample_service(service, state, release)
    assert sample_service(service, state, release) == first
    assert os.getsid(first) == first
    wait_until(lambda: samples(service) >= 3, "samples are taken")
    with EngineApi(state.endpoint) as api:
        answer = api.complete("chat", "The", 4)
    (run,) = read_runs(service.samples)
    before = run.requests[-1] if run.requests else 0
    wait_until(
        lambda: (read_runs(service.samples)[0].requests or (0,))[-1] >= answer.output_tokens,
        "tokens are counted",
    )
    assert before <= (read_runs(service.samples)[0].requests or (0,))[-1]
    assert all(1e6 < value < 1e9 for value in run.bytes_)
    assert stop_sampler(service)
    assert not psutil.pid_exists(first) or psutil.Process(first).status() == psutil.STATUS_ZOMBIE
    assert not stop_sampler(service)


def samples(folder: ServiceFolder) -> int:
    """Samples of the first run so far."""
    runs = read_runs(folder.samples)
    return len(runs[0].t_s) if runs else 0


def test_a_new_engine_is_a_new_run(service: ServiceFolder, release: Release, slipway_home: Path) -> None:
    state = service.state()
    assert state is not None
    sample_service(service, state, release)
    wait_until(lambda: samples(service) >= 2, "samples are taken")
    (engine,) = engines_of(slipway_home)
    engine.kill()
    wait_until(lambda: len(read_runs(service.samples)) == 2, "the new engine has a file of its own")
    assert sampler_pid(service) is not None


def test_a_killed_sampler_is_started_again_and_goes_on(service: ServiceFolder, release: Release) -> None:
    state = service.state()
    assert state is not None
    first = sample_service(service, state, release)
    wait_until(lambda: samples(service) >= 2, "samples are taken")
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: sampler_pid(service) is None, "the sampler is gone")
    taken = samples(service)
    assert sample_service(service, state, release) != first
    wait_until(lambda: samples(service) > taken, "samples are taken again")
    assert len(read_runs(service.samples)) == 1


def test_a_sampler_is_known_by_any_spelling_of_the_home(
    service: ServiceFolder, release: Release, tmp_path: Path
) -> None:
    state = service.state()
    assert state is not None
    sampler = sample_service(service, state, release)
    (tmp_path / "link").symlink_to(service.root.parent)
    assert sampler_pid(ServiceFolder(tmp_path / "link", service.name)) == sampler


def test_the_sampler_ends_with_the_service(service: ServiceFolder, release: Release) -> None:
    state = service.state()
    assert state is not None
    sample_service(service, state, release)
    with SupervisedService(service) as target:
        stop_service(service, target, drain_s=0)
    wait_until(lambda: sampler_pid(service) is None, "the sampler ends")


LEAKS = "kept.append(bytearray(b'x') * (1 << 20))"
FILLS_A_CACHE = "kept.append(bytearray(b'x') * (1 << 20)) if len(kept) < 30 else None"
LOOP = "import sys, time\nkept = []\nwhile time.monotonic() < {end}:\n    {work}\n    time.sleep(0.02)"


def test_a_process_that_leaks_is_told_from_one_that_fills_a_cache(tmp_path: Path) -> None:
    """Real memory, the real sampler, and a day that lasts three seconds."""
    end = time.monotonic() + 60  # should this test be killed, they end by themselves
    children, folders = [], []
    try:
        for name, work in (("leaks", LEAKS), ("fills", FILLS_A_CACHE)):
            folder = ServiceFolder(tmp_path, name)
            write_atomically(folder.state_file, "{}")
            children.append(subprocess.Popen([sys.executable, "-c", LOOP.format(end=end, work=work)]))
            folders.append(folder)
            start_sampler(
                folder, ServiceProcesses(kind="process", pids=(children[-1].pid,), period_s=PERIOD_S)
            )
        wait_until(
            lambda: min(samples(folder) for folder in folders) >= 120,
            "a day and a half of samples",
            timeout_s=60,
        )
        leaking, filling = (
            judge(read_runs(folder.samples), LeakRequest(confirm_after_s=3, limit_bytes=1 << 30))
            for folder in folders
        )
    finally:
        for folder in folders:
            stop_sampler(folder)
        for child in children:
            child.kill()
            child.wait()
    assert leaking.verdict is LeakVerdict.CONFIRMED, leaking.reason
    assert 5e6 < leaking.slope_bytes_per_s < 6e7  # a mebibyte each 20 ms, later on a busy machine
    assert leaking.oom_at_s is not None
    assert leaking.oom_at_s > time.time() - 60
    assert filling.verdict is LeakVerdict.NONE, filling.reason


def test_what_is_sampled_of_a_container(service: ServiceFolder) -> None:
    state = service.state()
    assert state is not None
    docker = state.model_copy(update={"target": Target.DOCKER})
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        running = Running(release=state.release, host=state.host, port=state.port, up=True, pid=child.pid)
        found = processes_of(service, docker, running, period_s=5)
    finally:
        child.communicate(b"\n")
    assert container_of(child.pid) is None, "it has ended"
    # This test may itself run in a container: then that is the one named.
    assert found.kind in ("process", "container")
    assert found.pids == (child.pid,) or found.id is not None
    assert found.endpoint == state.endpoint
    assert processes_of(service, docker, None, period_s=5) == ServiceProcesses(
        kind="process", endpoint=state.endpoint, period_s=5
    )
