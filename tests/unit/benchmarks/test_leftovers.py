"""The look around after a kill sees what it is there to see."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import leftovers
from benchmarks.killed_deploy import END, FIRST, STAGES, Deploy, Watched
from benchmarks.prove_lifecycle import Kill, _done_again
from tasks.core.files import file_lock

pytestmark = pytest.mark.slow

ANSWER = b'{"choices": [{"text": "well"}]}'


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(ANSWER)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def answer() -> Iterator[dict[str, Any]]:
    """What a deploy printed whose service answers."""
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {"name": "one", "endpoint": f"http://127.0.0.1:{server.server_port}"}
        server.shutdown()


@pytest.fixture
def deploy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deploy]:
    """A command whose service runs: processes that look like its parts."""
    monkeypatch.setattr(leftovers, "PATIENCE_S", 0.3)
    made = Deploy(tmp_path / "spec.yaml", (), tmp_path, None)
    made.home.mkdir()
    made.temporary.mkdir()
    names = ("process_guard.py", "supervisor.py", "sampler.py", "llama_cpp_server.py", "haproxy")
    parts = [idle(made.home / "parts" / name) for name in names]
    yield made
    for part in parts:
        end(part)


def idle(*arguments: Path, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """A process that waits for the end of its input, and has these words in its command line."""
    command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", *map(str, arguments)]
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **(env or {})}
    )
    assert child.stdout is not None
    child.stdout.readline()  # it runs: its command line can be read
    return child


def end(child: subprocess.Popen[bytes]) -> None:
    child.communicate()


def test_a_clean_home_has_no_faults(deploy: Deploy, answer: dict[str, Any]) -> None:
    assert leftovers.faults_of(deploy, answer) == []


def test_unfinished_files_leases_and_temporary_files_are_seen(deploy: Deploy, answer: dict[str, Any]) -> None:
    (deploy.home / "candidates" / "one").mkdir(parents=True)
    (deploy.home / "candidates" / "one" / "model.gguf.part").touch()
    (deploy.temporary / "slipway-x").touch()
    with file_lock(deploy.home / "leases" / "service-one", wait=False, holder="this test"):
        assert leftovers.faults_of(deploy, answer) == [
            "left behind: candidates/one/model.gguf.part",
            "temporary file left: slipway-x",
            "lease still held: service-one",
        ]


def test_strays_are_seen_by_their_command_or_their_environment(deploy: Deploy) -> None:
    second = idle(deploy.home / "parts" / "llama_cpp_server.py")
    other = idle(env={"SLIPWAY_HOME": str(deploy.home)})
    try:
        faults = leftovers.strays(deploy.home, deploy.parts, exact=True)
    finally:
        end(second)
        end(other)
    assert sorted(fault.partition(":")[0] for fault in faults) == [
        "1 of kind process instead of 0",
        "2 of kind engine instead of 1",
    ]
    assert leftovers.strays(deploy.home, deploy.parts, exact=True) == []
    assert len(leftovers.strays(deploy.home, {}, exact=False)) == len(deploy.parts)


def test_what_is_missing_and_what_does_not_answer_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "PATIENCE_S", 0)
    deploy = Deploy(tmp_path / "spec.yaml", (), tmp_path, None)
    deploy.temporary.mkdir()
    faults = leftovers.faults_of(deploy, {"name": "one", "endpoint": "http://127.0.0.1:9"})
    assert faults[:-1] == [
        "no supervisor runs",
        "no guard runs",
        "no engine runs",
        "no proxy runs",
        "no sampler runs",
    ]
    assert faults[-1].startswith("the service does not answer: ")


def test_files_that_were_made_anew_are_seen(tmp_path: Path) -> None:
    candidate = tmp_path / "candidates" / "one"
    candidate.mkdir(parents=True)
    model, document = candidate / "model.gguf", candidate / "candidate.json"
    model.touch()
    assert leftovers.finished_files(tmp_path).written == {}  # without its document it is not finished
    document.touch()
    before = leftovers.finished_files(tmp_path)
    assert before.changed(tmp_path) == []
    other = candidate / "other"
    other.touch()
    other.rename(model)
    document.unlink()
    assert before.changed(tmp_path) == ["candidates/one/candidate.json", "candidates/one/model.gguf"]


def test_a_kill_counts_where_it_hit() -> None:
    seen = Watched(ready_s=1.0)
    assert [seen.begin(stage) for stage in STAGES] == [1.0] * 3 + [None] * 4
    assert seen.hit("staging") == "staging"
    seen.finished = dict.fromkeys(FIRST, 5.0)
    assert seen.begin("quantization") == 5.0
    assert seen.hit("staging") == "quantization"
    seen.finished = {stage: 5.0 + number for number, stage in enumerate(STAGES)}
    assert (seen.hit("health"), seen.length("health")) == (END, 1.0)


def test_only_work_that_had_finished_counts_as_repeated() -> None:
    kill = Kill("rollout", 0.5, finished_before=["environment", "compatibility"])
    kill.redone = ["compatibility", "rollout"]
    assert _done_again(kill) == []
    kill.redone = ["environment", "rollout"]
    assert _done_again(kill) == ["done again although finished: environment"]
