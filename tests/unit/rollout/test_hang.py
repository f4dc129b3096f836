"""When an engine is hung, by a clock that does not run and a `/health` that is told what to do."""

from __future__ import annotations

import asyncio
import http.server
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from tasks.rollout.daemon.hang import LOOKS, HangWatch, Traffic, answers_health, cpu_seconds

pytestmark = pytest.mark.slow


class Scene:
    """An engine as the watch sees it, looked at once a period."""

    def __init__(self) -> None:
        self.requests = 0
        self.sent_bytes = 0
        self.now = 0.0
        self.healthy = False
        self.probed = 0
        self.used_s = 0.0
        self.watch = HangWatch(
            1, self._look, 60.0, probe=self._probe, clock=lambda: self.now, cpu_s=lambda: self.used_s
        )

    async def _look(self) -> Traffic:
        return Traffic(self.requests, self.sent_bytes)

    async def _probe(self, port: int, timeout_s: float) -> bool:
        self.probed += 1
        return self.healthy

    def looks(self, count: int, each: Callable[[int], None] = lambda number: None) -> list[bool]:
        found = []
        for number in range(count):
            each(number)
            self.now += self.watch.period_s
            found.append(asyncio.run(self.watch.is_hung()))
        return found


@pytest.fixture
def waiting() -> Scene:
    """One request waits."""
    scene = Scene()
    scene.requests = 1
    return scene


def test_a_minute_without_a_sign_of_life_is_a_death(waiting: Scene) -> None:
    assert waiting.looks(LOOKS) == [False] * (LOOKS - 1) + [True]


def test_an_engine_without_requests_is_never_asked() -> None:
    scene = Scene()
    assert True not in scene.looks(10 * LOOKS)
    assert scene.probed == 0


def test_a_long_prompt_is_no_death_while_health_answers(waiting: Scene) -> None:
    waiting.healthy = True
    assert True not in waiting.looks(10 * LOOKS)


def test_health_that_answers_now_and_then_is_a_sign_of_life(waiting: Scene) -> None:
    def now_and_then(number: int) -> None:
        waiting.healthy = number % (LOOKS - 1) == 0

    assert True not in waiting.looks(10 * LOOKS, now_and_then)


def test_a_byte_now_and_then_is_a_sign_of_life(waiting: Scene) -> None:
    def now_and_then(number: int) -> None:
        waiting.sent_bytes += number % (LOOKS - 1) == 0

    assert True not in waiting.looks(10 * LOOKS, now_and_then)


@pytest.mark.parametrize(
    ("share", "alive"), [(2.0, True), (0.5, True), (0.1, True), (0.01, False), (0.0, False)]
)
def test_processor_time_is_a_sign_of_life(waiting: Scene, share: float, alive: bool) -> None:
    def compute(number: int) -> None:
        waiting.used_s += share * waiting.watch.period_s

    assert (True not in waiting.looks(10 * LOOKS, compute)) is alive


def test_processor_time_of_a_whole_tree_is_counted() -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]]); input()"
    spin = "import time, sys\nwhile time.process_time() < 1: pass\nprint('spun', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script, spin], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "spun\n"
        assert cpu_seconds(process.pid) >= 1
        process.communicate("\n\n")
    assert cpu_seconds(process.pid) == 0


def test_the_minute_begins_with_the_request() -> None:
    scene = Scene()
    scene.looks(10 * LOOKS)
    scene.requests = 1
    assert True not in scene.looks(LOOKS - 1)


@pytest.mark.parametrize("status", [200, 503])
def test_any_answer_of_health_counts(status: int) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert asyncio.run(answers_health(server.server_port, 10))
        server.shutdown()


def test_silence_is_told_from_refusal() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert not asyncio.run(answers_health(port, 0.05))
    assert asyncio.run(answers_health(port, 10)), "nothing listens: that is no silence"
