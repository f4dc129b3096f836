"""guidellm's command line, and its recorded reports.

The reports are of guidellm 0.8.1: of llama.cpp with the tiny model and 4 slots (`closed`, `open`), and of the faulty engine
(`refused`, `hung`, `endless`); texts, and metrics that nobody reads, are taken out.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from inline_snapshot import snapshot

from tasks.batching.guidellm import (
    Answer,
    GuidellmReport,
    Target,
    closed_figures,
    command,
    longest_s,
    open_figures,
    read_report,
)
from tasks.batching.saturation import judge_waits
from tasks.core.errors import CommandError, EngineError, EngineHungError, EngineSlowError
from tasks.core.load import Arrivals, Load, OpenLoad

GOLDEN = Path(__file__).parents[2] / "golden" / "guidellm"
TARGET = Target("http://127.0.0.1:8000", "tiny", Path("/models/tiny"))
LOAD = Load(clients=4, prompt_tokens=64, output_tokens=32, seed=2)
TWO = LOAD.model_copy(update={"clients": 2})
OPEN = OpenLoad(rate_per_s=2.5, requests=100, prompt_tokens=64, output_tokens=32)


def options(load: Load | OpenLoad) -> dict[str, list[Any]]:
    """Each option's values, read as guidellm reads them."""
    argv = command(Path("/env/bin/python"), TARGET, load, Path("/out/report.json"))
    assert (argv[0], Path(argv[1]).name, argv[2]) == ("/env/bin/python", "run_guidellm.py", "run")
    assert argv[-1] == "--disable-console"
    found: dict[str, list[Any]] = {}
    for name, value in zip(argv[3:-1:2], argv[4:-1:2], strict=True):
        found.setdefault(name, []).append(json.loads(value))
    return found


def recorded(name: str) -> str:
    return (GOLDEN / f"{name}.json").read_text()


def test_a_closed_loop_is_so_many_streams() -> None:
    assert options(LOAD) == snapshot(
        {
            "--backend": [
                {
                    "kind": "openai_http",
                    "target": "http://127.0.0.1:8000",
                    "model": "tiny",
                    "request_format": "/v1/completions",
                    "http2": False,
                    "timeout": 120,
                }
            ],
            "--profile": [{"kind": "concurrent", "streams": 4}],
            "--constraint": [{"kind": "max_duration", "seconds": 5.0}, {"kind": "max_errors", "count": 1}],
            "--tokenizer": [{"kind": "huggingface_auto", "model": "/models/tiny"}],
            "--data": [
                {
                    "kind": "synthetic_text",
                    "prompt_tokens": 64,
                    "output_tokens": 32,
                    "output_tokens_min": 24,
                    "output_tokens_max": 40,
                }
            ],
            "--data-loader": [{"kind": "pytorch", "num_workers": 1, "prefetch_factor": 64}],
            "--seed": [{"kind": "static", "value": 2}],
            "--output": [{"kind": "json", "path": "/out/report.json"}],
        }
    )


def test_a_model_that_chats_is_asked_in_chat() -> None:
    argv = command(Path("/env/bin/python"), replace(TARGET, chat=True), LOAD, Path("/out/report.json"))
    backend = json.loads(argv[argv.index("--backend") + 1])
    assert backend["request_format"] == "/v1/chat/completions"


def test_an_open_loop_is_a_rate() -> None:
    assert options(OPEN)["--profile"] == [{"kind": "poisson", "rate": [2.5]}]
    assert options(OPEN)["--constraint"] == [
        {"kind": "max_requests", "count": 100},
        {"kind": "max_duration", "seconds": 50.0},
        {"kind": "max_errors", "count": 1},
    ]
    even = OPEN.model_copy(update={"arrivals": Arrivals.CONSTANT})
    assert options(even)["--profile"] == [{"kind": "constant", "rate": [2.5]}]
    assert longest_s(OPEN) == 100 / 2.5 + OPEN.drain_s


def test_figures_of_a_closed_loop_are_those_guidellm_has_itself() -> None:
    report = read_report(recorded("closed"))
    figures = closed_figures(report, LOAD)
    run = json.loads(recorded("closed"))["benchmarks"][0]
    own = run["metrics"]
    assert len(report.answers) == own["request_totals"]["successful"] + own["request_totals"]["incomplete"]
    assert sum(answer.done for answer in report.answers) == own["request_totals"]["successful"]
    # Its own percentiles are of whole answers alone; these are also of those that were cut off at the end.
    percentiles = own["time_to_first_token_ms"]["successful"]["percentiles"]
    assert figures.ttft_p50_ms == pytest.approx(percentiles["p50"], rel=0.1)
    assert figures.ttft_p95_ms == pytest.approx(percentiles["p95"], rel=0.1)
    assert figures.tokens_per_s == pytest.approx(
        own["output_tokens_per_second"]["successful"]["mean"], rel=0.05
    )
    per_token = sorted(
        one["inter_token_latency_ms"]
        for kind in ("successful", "incomplete")
        for one in run["requests"][kind]
        if one["inter_token_latency_ms"] is not None
    )
    assert figures.tpot_p50_ms == pytest.approx(per_token[(len(per_token) - 1) // 2], rel=0.1)
    assert figures.seconds == pytest.approx(5)


def test_an_open_loop_counts_from_when_a_request_was_to_be_sent() -> None:
    report = read_report(recorded("open"))
    figures, waits = open_figures(report)
    requests = json.loads(recorded("open"))["benchmarks"][0]["requests"]["successful"]
    assert len(waits) == len(requests) == figures.requests == 40
    # guidellm itself counts from when it did send.
    own = sorted(one["time_to_first_token_ms"] for one in requests)
    assert figures.ttft_p95_ms > own[int(0.95 * len(own)) - 1]
    assert all(answer.wanted <= answer.sent for answer in report.answers)
    assert not judge_waits(waits).saturated


def test_failed_requests_say_what_the_engine_did() -> None:
    with pytest.raises(EngineHungError, match=r"2 of guidellm's requests failed, the first with ReadTimeout"):
        read_report(recorded("hung"))
    with pytest.raises(EngineError, match="500 Internal Server Error") as refused:
        read_report(recorded("refused"))
    assert type(refused.value) is EngineError


def test_each_client_must_have_had_a_whole_answer() -> None:
    report = read_report(recorded("endless"))
    assert [answer.done for answer in report.answers] == [False, False]
    with pytest.raises(EngineSlowError, match="0 of 2 clients got a complete answer within 5 s"):
        closed_figures(report, TWO)


def test_a_client_is_not_charged_for_what_was_cut_off() -> None:
    """Two clients whose prompts are worked off one after the other, as slow engines do; the end cuts two short."""

    def answer(sent: float, last: float, *, done: bool = True) -> Answer:
        return Answer(wanted=sent, sent=sent, first=last - 0.5, last=last, tokens=8, done=done)

    answers = (answer(0, 2), answer(0, 4), answer(2, 6, done=False), answer(4, 6, done=False))
    figures = closed_figures(GuidellmReport(seconds=6, answers=answers), TWO)
    assert figures.tokens_per_s == pytest.approx(8 / 2 + 8 / 4)
    one = (answer(0, 2), answer(0, 6, done=False), answer(2, 4), answer(4, 6, done=False))
    with pytest.raises(EngineSlowError, match="1 of 2 clients"):
        closed_figures(GuidellmReport(seconds=6, answers=one), TWO)


@pytest.mark.parametrize("spread_s", [0.0, 0.0014])
def test_what_came_in_one_piece_tells_no_time_per_token(spread_s: float) -> None:
    """Its events are worked off one by one, which takes a while: 0.2 ms a token are no engine's."""
    in_one = Answer(wanted=0, sent=0, first=2 - spread_s, last=2, tokens=8, done=True)
    unknown = closed_figures(GuidellmReport(seconds=6, answers=(in_one, in_one)), TWO)
    assert set(unknown.latency_ms) == {"ttft_p50", "ttft_p95"}
    streamed = Answer(wanted=2, sent=2, first=3, last=3.14, tokens=8, done=True)
    figures = closed_figures(GuidellmReport(seconds=6, answers=(in_one, in_one, streamed)), TWO)
    assert (figures.requests, figures.tpot_p50_ms) == (3, pytest.approx(20))


def test_no_token_in_time_is_slow() -> None:
    values = json.loads(recorded("endless"))
    for one in values["benchmarks"][0]["requests"]["incomplete"]:
        one["info"]["timings"] |= {"first_token_iteration": None, "last_token_iteration": None}
    report = read_report(json.dumps(values))
    with pytest.raises(EngineSlowError, match="0 of 2 clients got a complete answer within 5 s"):
        closed_figures(report, TWO)
    with pytest.raises(EngineSlowError):
        open_figures(report)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"metadata": {"version": 3}}', "version 3"),
        ('{"metadata": {"version": 2}, "benchmarks": []}', "cannot be read"),
        ('{"metadata": {"version": 2}, "benchmarks": [{"requests": {"errored": []}}]}', "'start_time'"),
    ],
)
def test_another_report_is_refused(text: str, message: str) -> None:
    with pytest.raises(CommandError, match=message) as caught:
        read_report(text)
    assert caught.value.fix == "set tuning.load_generator to builtin"
