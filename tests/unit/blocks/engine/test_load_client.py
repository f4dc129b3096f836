"""The load generator against engines that behave well and badly."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import wait_until

from blocks.engine.api import EngineApi
from blocks.engine.load_client import LoadClient, _answered, _enough, _Exchange, _figures
from blocks.engine.load_prompts import ask_in_text, ask_in_words, prompts_for
from blocks.processes.ports import LOCALHOST, free_port
from blocks.processes.process import guarded
from tasks.batching.saturation import judge_waits
from tasks.core.cancellation import begin
from tasks.core.errors import EngineError, EngineHungError, EngineSlowError, StageCancelledError
from tasks.core.load import (
    Arrivals,
    Load,
    OpenLoad,
    Prompts,
    closed_throughput,
    load_for,
    load_for_decoding,
    longest_output,
    open_load_for,
    percentile,
)
from tasks.core.spec_kinds import EngineKind
from tasks.engines.card import read_card

pytestmark = pytest.mark.slow

FAULTY_ENGINE = Path(__file__).parents[3] / "support" / "faulty_engine.py"
LOAD = Load(clients=2, prompt_tokens=4, output_tokens=5, min_s=0.05, max_s=0.3)


@contextmanager
def faulty_engine(behaviour: str, log: Path) -> Iterator[LoadClient]:
    port = free_port()
    argv = [sys.executable, str(FAULTY_ENGINE), LOCALHOST, str(port), behaviour]
    url = f"http://{LOCALHOST}:{port}"
    with log.open("wb") as output, guarded(argv, stdout=output, stderr=output), EngineApi(url) as api:
        wait_until(api.ready, "the faulty engine answers")
        yield LoadClient(url, "odd", range(100))


def test_figures_of_a_steady_engine(tmp_path: Path) -> None:
    with faulty_engine("fine", tmp_path / "log") as client:
        figures = client.run(LOAD)
    assert figures.requests >= LOAD.min_requests
    assert figures.seconds >= LOAD.min_s
    # Five tokens 2 ms apart: the time to the first token is no part of the time per token.
    assert 0 < figures.latency_ms["tpot_p50"] <= figures.latency_ms["tpot_p95"]
    assert 0 < figures.ttft_p50_ms <= figures.ttft_p95_ms
    assert 0 < figures.tokens_per_s < 2 * 1000 / 2 * 5 / 4


def test_a_stream_without_prompts_is_measured_by_what_came_so_far(tmp_path: Path) -> None:
    with faulty_engine("endless", tmp_path / "log") as client:
        figures = client.run(LOAD.model_copy(update={"whole": False}))
    assert figures.requests == LOAD.clients
    assert figures.seconds >= LOAD.max_s
    assert figures.latency_ms["tpot_p50"] >= 10


def heard(sent: float, tokens: list[float], *, done: bool) -> _Exchange:
    """An answer whose tokens came at these times."""
    exchange = _Exchange(b"", sent=sent)
    for at in tokens:
        exchange.answer.feed(b'data: {"choices": [{"text": "a"}]}\n', at)
    if done:
        exchange.answer.feed(b"data: [DONE]\n", tokens[-1])
    return exchange


def test_a_slow_engine_has_the_time_for_whole_answers() -> None:
    """All clients begin with a prompt: an engine that was cut off there would look the slower the more there are."""

    def exchange(sent: float, last: float, *, done: bool) -> _Exchange:
        return heard(sent, [last - 0.1, *[last] * 4], done=done)

    alone = [[exchange(0, 4, done=True)]]
    begun = [[exchange(0, 5, done=True), exchange(5, 6, done=False)], [exchange(0, 5, done=False)]]
    assert _enough(LOAD, alone, 4.1)
    assert not _enough(LOAD, begun, 6.0)
    assert _enough(LOAD.model_copy(update={"whole": False}), begun, 6.0)
    begun[1][0].answer.feed(b"data: [DONE]\n", 6.0)
    assert _enough(LOAD, begun, 6.0)  # past the time, few answers are enough
    # Two clients had five tokens in 5 s each; what one of them has begun since counts for neither.
    assert closed_throughput(_answered(own, 1.0) for own in begun) == pytest.approx(2)
    assert closed_throughput(_answered(own, 1.0) for own in alone) == pytest.approx(1.25)


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
    with faulty_engine(behaviour, tmp_path / "log") as client, pytest.raises(EngineError, match=message):
        client.run(LOAD)


@pytest.mark.parametrize("behaviour", ["hang", "stall"])
def test_an_engine_that_sends_nothing_any_more_hangs(behaviour: str, tmp_path: Path) -> None:
    load = LOAD.model_copy(update={"silence_s": 0.1, "max_s": 60})
    with (
        faulty_engine(behaviour, tmp_path / "log") as client,
        pytest.raises(EngineHungError, match=r"sent no byte for 0\.1 s"),
    ):
        client.run(load)


def test_one_silent_answer_among_others_is_a_hang(tmp_path: Path) -> None:
    """Not the engine as a whole, but one of its slots."""
    load = LOAD.model_copy(update={"silence_s": 0.1, "max_s": 60, "min_requests": 10**6})
    with faulty_engine("stall-once", tmp_path / "log") as client, pytest.raises(EngineHungError):
        client.run(load)


def test_an_engine_that_is_not_done_in_time_is_slow(tmp_path: Path) -> None:
    load = LOAD.model_copy(update={"timeout_s": 0.1, "max_s": 60})
    with (
        faulty_engine("endless", tmp_path / "log") as client,
        pytest.raises(EngineSlowError, match=r"did not finish within 0\.1 s"),
    ):
        client.run(load)


def test_bytes_without_a_token_are_not_slow_but_wrong(tmp_path: Path) -> None:
    load = LOAD.model_copy(update={"timeout_s": 0.1})
    with (
        faulty_engine("babble", tmp_path / "log") as client,
        pytest.raises(EngineError, match="streams chunks without a token") as caught,
    ):
        client.run(load)
    assert type(caught.value) is EngineError


def test_an_answer_that_was_read_in_one_piece_tells_no_time_per_token() -> None:
    apart = heard(1.0, [1.1, 1.2, 1.3, 1.4, 1.5], done=True)
    in_one = _Exchange(b"", sent=1.0)
    in_one.answer.feed(b'data: {"choices": [{"text": "a"}]}\n' * 5 + b"data: [DONE]\n", 1.3)
    found = _figures([apart, in_one, in_one], 1.0, 15.0, 1.0)
    assert (found.requests, found.tpot_p50_ms, found.tpot_p95_ms) == (
        3,
        pytest.approx(100),
        pytest.approx(100),
    )
    assert found.ttft_p95_ms == pytest.approx(300)
    assert set(_figures([in_one, in_one], 1.0, 10.0, 1.0).latency_ms) == {"ttft_p50", "ttft_p95"}
    with pytest.raises(EngineError, match="does not stream tokens"):
        _figures([heard(1.0, [1.2], done=True)], 1.0, 1.0, 1.0)


def test_tokens_without_text_are_tokens() -> None:
    """Of a model with random weights whole answers are halves of characters: they tell no time, and are answers."""
    silent = _Exchange(b"", sent=1.0)
    silent.answer.feed(
        b'HTTP/1.1 200 OK\r\n\r\ndata: {"choices": [], "usage": {"completion_tokens": 8}}\n', 3.0
    )
    silent.check("http://127.0.0.1:1")
    spoken = heard(3.0, [3.1, 3.2, 3.3, 3.4], done=True)
    assert closed_throughput([_answered([silent, spoken], 1.0)]) == pytest.approx(12 / 2.4)
    found = _figures([silent, spoken], 1.0, 9.0, 1.0, end=9.0)
    assert (found.ttft_p95_ms, found.tpot_p95_ms) == (pytest.approx(100), pytest.approx(100))


def test_an_answer_that_was_cut_off_counts_in_an_open_loop_only() -> None:
    """Of a closed loop it is what was being answered when the time was up: what it holds is estimated."""
    whole = heard(1.0, [1.1, 1.2, 1.3, 1.4], done=True)
    slower = heard(1.0, [1.1, 1.4, 1.7], done=False)
    assert _figures([whole, slower], 1.0, 9.0, 1.0).tpot_p95_ms == pytest.approx(100)
    assert _figures([whole, slower], 1.0, 9.0, 1.0, end=2.0).tpot_p95_ms == pytest.approx(300)
    assert _figures([slower], 1.0, 9.0, 1.0).tpot_p95_ms == pytest.approx(300)


# --- open loop ---------------------------------------------------------------------------------------------

OPEN = OpenLoad(prompt_tokens=4, output_tokens=5, rate_per_s=200, requests=60, arrivals=Arrivals.CONSTANT)


def test_an_open_loop_sends_on_time_whatever_is_answered(tmp_path: Path) -> None:
    with faulty_engine("fine", tmp_path / "log") as client:
        figures, waits = client.run_open(OPEN)
    assert [wait.arrived for wait in waits] == pytest.approx(OPEN.send_times())
    assert figures.requests == len(waits) == 60
    assert all(wait.arrived < (wait.first or 0) <= (wait.done or 0) for wait in waits)
    assert figures.seconds >= OPEN.send_times()[-1]
    assert figures.tokens_per_s == pytest.approx(60 * 5 / figures.seconds)


def test_requests_beyond_what_an_engine_can_do_pile_up(tmp_path: Path) -> None:
    """One at a time in 10 ms, asked three times as fast."""
    asked = OPEN.model_copy(update={"rate_per_s": 300, "requests": 120})
    with faulty_engine("serial", tmp_path / "log") as client:
        figures, waits = client.run_open(asked)
    found = judge_waits(waits)
    assert found.saturated
    assert found.backlog >= 60
    # The last of them waits for all that came before it.
    assert figures.ttft_p95_ms > 120 * (10 - 10 / 3) * 0.8


def test_a_freeze_is_seen_by_all_that_would_have_come_in_it(tmp_path: Path) -> None:
    """A closed loop asks nothing while it waits, and so hardly sees it: coordinated omission."""
    closed = LOAD.model_copy(update={"clients": 1, "min_s": 0.6, "max_s": 60, "min_requests": 60})
    with faulty_engine("freeze", tmp_path / "closed") as client:
        omitted = client.run(closed)
    asked = OPEN.model_copy(update={"rate_per_s": 100, "requests": 100})
    with faulty_engine("freeze", tmp_path / "open") as client:
        figures, _ = client.run_open(asked)
    assert omitted.ttft_p95_ms < 200
    # Of 100 requests in a second, half come while nothing is answered.
    assert figures.ttft_p95_ms > 350


def test_waits_are_measured_from_when_a_request_was_to_be_sent(tmp_path: Path) -> None:
    """A generator that comes late itself must not hide it: here it sleeps through most of its schedule."""

    class Late(LoadClient):
        def requests(self, load: Prompts, number: int) -> Iterator[bytes]:
            for request in super().requests(load, number):
                time.sleep(0.004)  # in the loop's own thread, after the clock was started
                yield request

    # The answers to the last requests still stream when it is awake again.
    with faulty_engine("slow", tmp_path / "log") as client:
        late = Late(client.base_url, "odd", range(100))
        figures, _ = late.run_open(OPEN.model_copy(update={"rate_per_s": 10_000}))
    assert figures.ttft_p50_ms > 60 * 4 * 0.9


@pytest.mark.parametrize(
    ("behaviour", "error", "message"),
    [
        ("hang", EngineHungError, r"sent no byte for 0\.2 s"),
        ("break", EngineError, "broke off an answer after 2 tokens"),
        ("die", EngineError, "closed the connection without an answer|does not answer"),
    ],
)
def test_an_open_loop_tells_what_goes_wrong(
    behaviour: str, error: type[EngineError], message: str, tmp_path: Path
) -> None:
    asked = OPEN.model_copy(update={"silence_s": 0.2})
    with faulty_engine(behaviour, tmp_path / "log") as client, pytest.raises(error, match=message):
        client.run_open(asked)


def test_what_is_queued_behind_others_does_not_hang(tmp_path: Path) -> None:
    """Most wait far longer than the bound; the engine answers all the while."""
    asked = OPEN.model_copy(update={"rate_per_s": 2000, "requests": 60, "silence_s": 0.2})
    with faulty_engine("serial", tmp_path / "log") as client:
        figures, _ = client.run_open(asked)
    assert figures.ttft_p95_ms > 300


def test_an_open_loop_ends_though_answers_are_missing(tmp_path: Path) -> None:
    asked = OPEN.model_copy(update={"requests": 20, "drain_s": 0.1})
    with faulty_engine("endless", tmp_path / "log") as client:
        figures, waits = client.run_open(asked)
    assert figures.seconds < 5
    assert all(wait.first is not None and wait.done is None for wait in waits)


@given(
    rate=st.floats(0.01, 1e4),
    requests=st.integers(2, 200),
    seed=st.integers(0, 99),
    arrivals=st.sampled_from(Arrivals),
)
def test_arrivals_ask_the_rate_that_was_wanted(
    rate: float, requests: int, seed: int, arrivals: Arrivals
) -> None:
    load = OpenLoad(
        prompt_tokens=1, output_tokens=2, rate_per_s=rate, requests=requests, seed=seed, arrivals=arrivals
    )
    times = load.send_times()
    assert len(times) == requests
    assert list(times) == sorted(times)
    assert 0 <= times[0] <= times[-1] <= requests / rate
    assert times == load.send_times()


def test_poisson_arrivals_are_as_scattered_as_their_name_says() -> None:
    """Gaps of a Poisson process are exponential: their deviation equals their mean."""
    load = OPEN.model_copy(update={"requests": 20_000, "arrivals": Arrivals.POISSON})
    gaps = [late - early for early, late in pairwise(load.send_times())]
    assert statistics.fmean(gaps) == pytest.approx(1 / 200, rel=0.01)
    assert statistics.stdev(gaps) == pytest.approx(1 / 200, rel=0.05)
    even = [late - early for early, late in pairwise(OPEN.send_times())]
    assert even == pytest.approx([1 / 200] * 59)


def test_an_engine_that_is_gone_is_a_fault(tmp_path: Path) -> None:
    client = LoadClient(f"http://{LOCALHOST}:{free_port()}", "gone", range(100))
    with pytest.raises(EngineError, match="does not answer"):
        client.run(LOAD)


def test_a_cancelled_load_stops(tmp_path: Path) -> None:
    begin().cancel("staging says corrupt")
    try:
        with faulty_engine("hang", tmp_path / "log") as client, pytest.raises(StageCancelledError):
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
        open_load_for(
            rate_per_s=clients, arrivals=Arrivals.POISSON, requests=20, context=context, output_tokens=output
        ),
    ):
        assert load.prompt_tokens >= 1
        assert load.prompt_tokens + longest_output(load.output_tokens) <= context


def test_prompts_are_as_long_as_was_asked() -> None:
    asked = {"context": 4096, "output_tokens": 32, "prompt_tokens": 2000}
    assert load_for(clients=2, **asked).prompt_tokens == 2000
    rate = open_load_for(rate_per_s=1, arrivals=Arrivals.POISSON, requests=20, **asked)
    assert rate.prompt_tokens == 2000


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
    asked_open = [
        tuple(json.loads(request.partition(b"\r\n\r\n")[2])["prompt"])
        for seed in range(3)
        for request in islice(
            client.requests(OPEN.model_copy(update={"prompt_tokens": 32, "seed": seed}), -1), 32
        )
    ]
    assert len({prompt[:8] for prompt in prompts}) == len(prompts) == 96
    assert len({prompt[:8] for prompt in (*prompts, *asked_open)}) == 192


def test_an_engine_without_a_tokenizer_is_asked_in_words_and_goes_on_past_the_end() -> None:
    card = read_card(EngineKind("tensorrt-llm"))
    with EngineApi("http://127.0.0.1:1") as api:  # nothing is asked of it
        words, body = prompts_for(card, api, "chat")
    assert len(set(words)) > 30
    assert body is ask_in_words
    assert body("chat", ["ship", "quay"], 5) == {
        "model": "chat",
        "prompt": "ship quay",
        "max_tokens": 5,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_an_engine_that_takes_text_alone_is_asked_in_words_for_an_exact_length() -> None:
    client = LoadClient("http://127.0.0.1:1", "/models/tiny", ["ship", "quay"], ask_in_text)
    request = next(client.requests(LOAD, 0))
    body = json.loads(request.partition(b"\r\n\r\n")[2])
    assert set(body["prompt"].split()) <= {"ship", "quay"}
    assert len(body["prompt"].split()) == LOAD.prompt_tokens
    length = json.loads(body["generation_config"])
    assert length["min_new_tokens"] == length["max_new_tokens"] == body["max_tokens"]
    # Anything else is refused with 422.
    assert set(body) == {"model", "prompt", "max_tokens", "stream", "generation_config"}
