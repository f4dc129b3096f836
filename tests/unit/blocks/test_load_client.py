"""The load generator against engines that behave well and badly."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import wait_until

from blocks.completion_dialects import WORDS
from blocks.engine_api import EngineApi
from blocks.load_client import LoadClient, percentile
from blocks.ports import LOCALHOST, free_port
from blocks.process import leashed
from tasks.core.cancellation import begin
from tasks.core.errors import EngineError, StageCancelledError
from tasks.core.load import Load, load_for, load_for_decoding, longest_output

ODD_ENGINE = Path(__file__).parents[2] / "support" / "odd_engine.py"
LOAD = Load(clients=2, prompt_tokens=4, output_tokens=5, min_s=0.05, max_s=0.3, timeout_s=1)


@contextmanager
def odd_engine(behaviour: str, log: Path) -> Iterator[LoadClient]:
    port = free_port()
    argv = [sys.executable, str(ODD_ENGINE), LOCALHOST, str(port), behaviour]
    url = f"http://{LOCALHOST}:{port}"
    with log.open("wb") as output, leashed(argv, stdout=output, stderr=output), EngineApi(url) as api:
        wait_until(api.ready, "the odd engine answers")
        yield LoadClient(url, "odd", range(100))


def test_figures_of_a_steady_engine(tmp_path: Path) -> None:
    with odd_engine("fine", tmp_path / "log") as client:
        figures = client.run(LOAD)
    assert figures.requests >= LOAD.min_requests
    assert figures.seconds >= LOAD.min_s
    # Five tokens 2 ms apart: the time to the first token is no part of the time per token.
    assert 0 < figures.tpot_p50_ms <= figures.tpot_p95_ms
    assert 0 < figures.ttft_p50_ms <= figures.ttft_p95_ms
    assert 0 < figures.tokens_per_s < 2 * 1000 / 2 * 5 / 4


def test_a_slow_engine_is_measured_by_what_it_streamed_so_far(tmp_path: Path) -> None:
    with odd_engine("slow", tmp_path / "log") as client:
        figures = client.run(LOAD)
    assert figures.requests == LOAD.clients
    assert figures.seconds >= LOAD.max_s
    assert figures.tpot_p50_ms >= 10


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("refuse", r"answered HTTP/1.1 500 .*: \{\"error\": \"no slot\"\}"),
        ("break", "broke off an answer after 2 tokens"),
        ("silent", "closed the connection without an answer"),
        ("hang", "did not answer within 1 s"),
        ("whole", "broke off an answer|closed|one piece"),
        ("die", "closed the connection without an answer|does not answer"),
    ],
)
def test_an_answer_that_is_not_whole_is_a_fault(behaviour: str, message: str, tmp_path: Path) -> None:
    with odd_engine(behaviour, tmp_path / "log") as client, pytest.raises(EngineError, match=message):
        client.run(LOAD)


def test_an_engine_that_is_gone_is_a_fault(tmp_path: Path) -> None:
    client = LoadClient(f"http://{LOCALHOST}:{free_port()}", "gone", range(100))
    with pytest.raises(EngineError, match="does not answer"):
        client.run(LOAD)


def test_a_cancelled_load_stops(tmp_path: Path) -> None:
    begin().cancel("staging says corrupt")
    try:
        with odd_engine("hang", tmp_path / "log") as client, pytest.raises(StageCancelledError):
            client.run(LOAD)
    finally:
        begin()


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60), st.floats(0.01, 1))
def test_percentiles_are_measured_values(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-6
    assert sum(value < found for value in values) < share * len(values) + 1e-6


@given(context=st.integers(64, 100_000), output=st.integers(2, 4096), clients=st.integers(1, 64))
def test_requests_fit_into_the_context(context: int, output: int, clients: int) -> None:
    if longest_output(output) >= context:
        return
    for load in (
        load_for(clients=clients, context=context, output_tokens=output),
        load_for_decoding(context=context, output_tokens=output),
    ):
        assert load.prompt_tokens >= 1
        assert load.prompt_tokens + longest_output(load.output_tokens) <= context


def test_no_two_prompts_are_alike() -> None:
    client = LoadClient("http://127.0.0.1:1", "x", range(100))
    prompts = [
        tuple(json.loads(request.partition(b"\r\n\r\n")[2])["prompt"])
        for seed in range(3)
        for number in range(8)
        for request in islice(
            client.requests(LOAD.model_copy(update={"prompt_tokens": 32, "seed": seed}), number), 4
        )
    ]
    assert len({prompt[:8] for prompt in prompts}) == len(prompts) == 96


def test_an_engine_that_takes_text_alone_is_asked_in_words_for_an_exact_length() -> None:
    client = LoadClient("http://127.0.0.1:1", "/models/tiny", ["ship", "quay"], WORDS)
    request = next(client.requests(LOAD, 0))
    body = json.loads(request.partition(b"\r\n\r\n")[2])
    assert set(body["prompt"].split()) <= {"ship", "quay"}
    assert len(body["prompt"].split()) == LOAD.prompt_tokens
    length = json.loads(body["generation_config"])
    assert length["min_new_tokens"] == length["max_new_tokens"] == body["max_tokens"]
    # Anything else is refused with 422.
    assert set(body) == {"model", "prompt", "max_tokens", "stream", "generation_config"}
