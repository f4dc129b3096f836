"""What of the catalogue can run here, run for real: llama.cpp's metrics and chat, and transformers serve."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
from pathlib import Path

import pytest
from dify_server import EMAIL, PASSWORD, dify_server
from waiting import wait_until

from blocks.applications.dify import DifyApi
from blocks.engine.api import Completion, EngineApi
from blocks.engine.process import serve
from tasks.core.serving import ServingConfig
from tasks.core.spec_kinds import EngineKind
from tasks.engines.catalogue import get_engine

pytestmark = pytest.mark.engine

CONFIG = ServingConfig(served_name="chat", batch=2, context=512, threads=1)


def test_llama_cpp_shows_the_metrics_of_its_card_and_dify_gets_an_answer(
    engine_python: Path, random_ggufs: tuple[Path, Path], tmp_path: Path
) -> None:
    """The console is not Dify's own: that cannot be installed here. The engine is llama.cpp."""
    engine = get_engine(EngineKind.LLAMA_CPP)
    command = engine.command(str(engine_python), str(engine.server_worker), str(random_ggufs[0]), CONFIG)
    with (
        serve(command, served_name="chat", log=tmp_path / "log") as served,
        EngineApi(served.base_url) as api,
        dify_server() as (address, _),
        DifyApi(address) as dify,
    ):
        api.complete("chat", "The", 4)
        shown = api.metrics()
        dify.log_in(EMAIL, PASSWORD)
        assert dify.register("chat", served.base_url, context=CONFIG.context) == "active"
    names = engine.card.metrics
    assert names is not None
    assert shown[names.requests_waiting] == 0
    assert sum(shown[name] for name in names.work_counters) >= 4


def test_llama_cpp_answers_health_while_a_burst_waits_for_its_slots(
    engine_python: Path, random_ggufs: tuple[Path, Path], tmp_path: Path
) -> None:
    engine = get_engine(EngineKind.LLAMA_CPP)
    command = engine.command(str(engine_python), str(engine.server_worker), str(random_ggufs[0]), CONFIG)
    body = json.dumps({"model": "chat", "prompt": "The", "max_tokens": 240, "ignore_eos": True})
    request = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(serve(command, served_name="chat", log=tmp_path / "log"))
        address = ("127.0.0.1", int(served.base_url.rpartition(":")[2]))
        burst = [stack.enter_context(socket.create_connection(address)) for _ in range(60)]
        for connection in burst:
            connection.sendall(request.encode())
        health = stack.enter_context(socket.create_connection(address))
        select.select(burst, [], [])  # one is answered: the others wait for their turn
        health.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in health.recv(1 << 12)
        answered, _, _ = select.select(burst, [], [], 0)
        assert len(answered) < 50, "it did not wait for the burst"


def test_transformers_serves_the_tiny_model_and_answers_what_it_has_begun(
    transformers_python: Path, repository: Path, tmp_path: Path
) -> None:
    engine = get_engine(EngineKind.TRANSFORMERS)
    model = str(repository / "examples" / "tiny" / "model")
    command = engine.command(str(transformers_python), str(engine.server_worker), model, CONFIG)
    name = CONFIG.served_name
    answers: list[Completion] = []
    with (
        serve(command, served_name=name, log=tmp_path / "log") as served,
        EngineApi(served.base_url) as api,
    ):
        asking = threading.Thread(target=lambda: answers.append(api.complete(name, "If the file", 400)))
        asking.start()
        wait_until(
            lambda: served.process.log.read_text().count("Request received") > 1, "the request is begun"
        )
        served.process.child.terminate()
        asking.join()
    assert answers[0].output_tokens == 400
