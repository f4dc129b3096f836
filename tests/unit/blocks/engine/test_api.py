"""What an engine's `/metrics` say, read from a real socket."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler

import pytest
from api_server import serving

from blocks.engine.api import EngineApi
from tasks.core.errors import EngineError


class Metrics(BaseHTTPRequestHandler):
    state: bytes

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.state)))
        self.end_headers()
        self.wfile.write(self.state)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


def test_metrics_are_summed_over_labels_whatever_these_hold() -> None:
    text = (
        "# TYPE waiting gauge\n"
        'waiting{model="a}b",path="{x} y"} 2\n'
        'waiting{model="c"} 3 1700000000000\n'
        "# TYPE done_total counter\n"
        "done_total 4\n"
        "usage NaN\n"
    )
    with serving(Metrics, text.encode()) as address, EngineApi(address) as api:
        found = api.metrics()
    assert (found["waiting"], found["done_total"]) == (5, 4)
    assert found["usage"] != found["usage"]


def test_what_is_not_in_the_format_is_an_error_of_the_engine() -> None:
    with (
        serving(Metrics, b"<html>no metrics</html>") as address,
        EngineApi(address) as api,
        pytest.raises(EngineError, match=r"/metrics is not in Prometheus' format"),
    ):
        api.metrics()


def answer(message: object, tokens: int = 2) -> bytes:
    usage = {"prompt_tokens": 9, "completion_tokens": tokens}
    return json.dumps({"choices": [{"message": message}], "usage": usage}).encode()


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "Hello."}, "Hello."),
        ({"content": "Hello.", "reasoning_content": "They greet."}, "Hello."),
        ({"content": None, "reasoning_content": "They"}, "They"),
        ({"content": "", "reasoning": "They"}, "They"),
        ({"content": None}, ""),
    ],
)
def test_an_answer_in_chat_is_what_was_said_or_thought_so_far(message: object, text: str) -> None:
    with serving(Metrics, answer(message)) as address, EngineApi(address) as api:
        found = api.chat("chat", "Hello", 16)
    assert (found.text, found.prompt_tokens, found.output_tokens) == (text, 9, 2)


@pytest.mark.parametrize(
    "state", [answer("text"), answer({"content": [1]}), answer({"content": ""}, 0), b"[]"]
)
def test_what_is_not_an_answer_in_chat_is_an_error(state: bytes) -> None:
    with (
        serving(Metrics, state) as address,
        EngineApi(address) as api,
        pytest.raises(EngineError, match=r"did not return a|returned an empty completion"),
    ):
        api.chat("chat", "Hello", 16)


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"data": [{"index": 0, "embedding": [0.6, 0.8]}]}, "the same embedding for different texts"),
        ({"choices": []}, "did not return embeddings"),
    ],
)
def test_an_embedding_that_says_nothing_of_its_text_is_no_answer(state: object, told: str) -> None:
    with (
        serving(Metrics, json.dumps(state).encode()) as address,
        EngineApi(address) as api,
        pytest.raises(EngineError, match=told),
    ):
        api.embed("m", "The")


def test_a_ranker_tells_documents_apart() -> None:
    def state(*scores: float) -> bytes:
        rows = [{"index": number, "relevance_score": score} for number, score in enumerate(scores)]
        return json.dumps({"results": rows}).encode()

    with serving(Metrics, state(0.5, 0.1)) as address, EngineApi(address) as api:
        assert api.rank("m", "The", ("The", "A")).text == "scores 0.5000, 0.1000"
    with (
        serving(Metrics, state(0.5, 0.5)) as address,
        EngineApi(address) as api,
        pytest.raises(EngineError, match="the same score for different documents"),
    ):
        api.rank("m", "The", ("The", "A"))
