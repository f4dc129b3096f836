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

from blocks.engine_api import EngineApi
from blocks.load_client import LoadClient, percentile
from blocks.ports import LOCALHOST, free_port
from blocks.process import leashed
from tasks.core.cancellation import begin
from tasks.core.errors import EngineError, EngineHungError, EngineSlowError, StageCancelledError
from tasks.core.load import Load, load_for, load_for_decoding, longest_output

ODD_ENGINE = Path(__file__).parents[2] / "support" / "odd_engine.py"
LOAD = Load(clients=2, prompt_tokens=4, output_tokens=5, min_s=0.05, max_s=0.3)


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
        ("fault", 'broke off an answer with {"error": {"code": 500, "message": "slot lost"'),
        ("silent", "closed the connection without an answer"),
        ("whole", "broke off an answer|closed|one piece"),
        ("die", "closed the connection without an answer|does not answer"),
    ],
)
def test_an_answer_that_is_not_whole_is_a_fault(behaviour: str, message: str, tmp_path: Path) -> None:
    with odd_engine(behaviour, tmp_path / "log") as client, pytest.raises(EngineError, match=message):
        client.run(LOAD)


@pytest.mark.parametrize("behaviour", ["hang", "stall"])
def test_an_engine_that_sends_nothing_any_more_hangs(behaviour: str, tmp_path: Path) -> None:
    load = LOAD.model_copy(update={"silence_s": 0.1, "max_s": 60})
    with (
        odd_engine(behaviour, tmp_path / "log") as client,
        pytest.raises(EngineHungError, match=r"sent no byte for 0\.1 s"),
    ):
        client.run(load)


def test_one_silent_answer_among_others_is_a_hang(tmp_path: Path) -> None:
    """Not the engine as a whole, but one of its slots."""
    load = LOAD.model_copy(update={"silence_s": 0.1, "max_s": 60, "min_requests": 10**6})
    with odd_engine("stall-once", tmp_path / "log") as client, pytest.raises(EngineHungError):
        client.run(load)


def test_an_engine_that_is_not_done_in_time_is_slow(tmp_path: Path) -> None:
    load = LOAD.model_copy(update={"timeout_s": 0.1, "max_s": 60})
    with (
        odd_engine("slow", tmp_path / "log") as client,
        pytest.raises(EngineSlowError, match=r"was not done within 0\.1 s"),
    ):
        client.run(load)


def test_bytes_without_a_token_are_not_slow_but_wrong(tmp_path: Path) -> None:
    load = LOAD.model_copy(update={"timeout_s": 0.1})
    with (
        odd_engine("babble", tmp_path / "log") as client,
        pytest.raises(EngineError, match="streams what holds no token") as caught,
    ):
        client.run(load)
    assert type(caught.value) is EngineError


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
