"""guidellm's words: the command line for a load, and what its report says. Pure, and runs nothing.

Source: guidellm 0.8.1 as installed (its `schemas` package, and reports of runs against llama.cpp); options are JSON.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.core.errors import CommandError, EngineError, EngineHungError, EngineSlowError
from tasks.core.load import (
    Arrivals,
    Load,
    LoadFigures,
    OpenLoad,
    Prompts,
    Wait,
    closed_throughput,
    figures_of,
    longest_output,
    shortest_output,
)

REQUIREMENTS = ("guidellm==0.8.1", "torch==2.13.0")
"""Of the environment that it runs in. Its loader of prompts is torch's; any build works."""

ENVIRONMENT = {"GUIDELLM__MAX_WORKER_PROCESSES": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
"""One process sends: the engine shares the cores with it. Nothing is fetched: tokenizers are local."""

CLOSED_S = 5.0
"""A closed loop's least length: each run starts a new process, which takes longer than this."""

_FASTEST_MS = 0.25
"""Between two tokens: less is how fast it reads what was buffered, and no step of an engine."""

_WORKER = Path(__file__).parent / "worker" / "run_guidellm.py"
_VERSION = 2
_PROMPTS_AHEAD = 64
_TIMEOUT = "timeout"


@dataclass(frozen=True)
class Target:
    """What is loaded: the engine's address, the model's name in its API, the folder of the model's tokenizer, and
    whether the model chats."""

    base_url: str
    model: str
    tokenizer: Path
    chat: bool = False


def command(python: Path, target: Target, load: Load | OpenLoad, report: Path) -> tuple[str, ...]:
    """The command line that puts `load` on `target` and writes a report."""
    options: list[tuple[str, dict[str, Any]]] = [
        (
            "--backend",
            {
                "kind": "openai_http",
                "target": target.base_url,
                "model": target.model,
                "request_format": "/v1/chat/completions" if target.chat else "/v1/completions",
                "http2": False,
                "timeout": load.silence_s,
            },
        ),
        ("--profile", _profile(load)),
        *(("--constraint", constraint) for constraint in _constraints(load)),
        ("--tokenizer", {"kind": "huggingface_auto", "model": str(target.tokenizer)}),
        ("--data", _data(load)),
        ("--data-loader", {"kind": "pytorch", "num_workers": 1, "prefetch_factor": _PROMPTS_AHEAD}),
        ("--seed", {"kind": "static", "value": max(0, load.seed)}),
        ("--output", {"kind": "json", "path": str(report)}),
    ]
    flat = [word for name, value in options for word in (name, json.dumps(value))]
    return (str(python), str(_WORKER), "run", *flat, "--disable-console")


def longest_s(load: Load | OpenLoad) -> float:
    """Seconds after which a run has sent all that it will, and has waited for the answers."""
    if isinstance(load, OpenLoad):
        return load.requests / load.rate_per_s + load.drain_s
    return max(load.max_s, CLOSED_S)


def _profile(load: Load | OpenLoad) -> dict[str, Any]:
    if isinstance(load, Load):
        return {"kind": "concurrent", "streams": load.clients}
    kind = "constant" if load.arrivals is Arrivals.CONSTANT else "poisson"
    return {"kind": kind, "rate": [load.rate_per_s]}


def _constraints(load: Load | OpenLoad) -> Iterator[dict[str, Any]]:
    if isinstance(load, OpenLoad):
        yield {"kind": "max_requests", "count": load.requests}
    yield {"kind": "max_duration", "seconds": longest_s(load)}
    yield {"kind": "max_errors", "count": 1}


def _data(load: Prompts) -> dict[str, Any]:
    """guidellm numbers its prompts, so no two are alike; lengths are spread as the built-in client's."""
    return {
        "kind": "synthetic_text",
        "prompt_tokens": load.prompt_tokens,
        "output_tokens": load.output_tokens,
        "output_tokens_min": shortest_output(load.output_tokens),
        "output_tokens_max": longest_output(load.output_tokens),
    }


@dataclass(frozen=True)
class Answer:
    """One request of a report; times are seconds since its run started. `first` is None if no token came."""

    wanted: float
    sent: float
    first: float | None
    last: float
    tokens: int
    done: bool


@dataclass(frozen=True)
class GuidellmReport:
    """A run: its length in seconds, and every request that was sent."""

    seconds: float
    answers: tuple[Answer, ...]


def read_report(text: str) -> GuidellmReport:
    """The one run of a report.

    Raises `EngineError` for a request that failed, `EngineHungError` if no byte came, and `CommandError` for what
    is not a report of the known version.
    """
    try:
        values = json.loads(text)
        if values["metadata"]["version"] != _VERSION:
            raise KeyError(f"version {values['metadata']['version']}")
        (run,) = values["benchmarks"]
        requests = run["requests"]
        if requests["errored"]:
            raise _failed(requests["errored"])
        start, end = run["start_time"], run["end_time"]
        done = [_answer(one, start, done=True) for one in requests["successful"]]
        broken = [
            _answer(one, start, done=False)
            for one in requests["incomplete"]
            if one["info"]["timings"]["request_start"] is not None
        ]
        answers = tuple(sorted((*done, *broken), key=lambda answer: answer.wanted))
        return GuidellmReport(seconds=end - start, answers=answers)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise CommandError(
            f"guidellm's report cannot be read: {error or type(error).__name__}",
            fix="set tuning.load_generator to builtin",
        ) from error


def _failed(errored: Sequence[dict[str, Any]]) -> EngineError:
    what = " ".join(str(errored[0]["info"]["error"]).split())[:200]
    said = f"{len(errored)} of guidellm's requests failed, the first with {what}"
    return EngineHungError(said) if _TIMEOUT in what.lower() else EngineError(said)


def _answer(request: dict[str, Any], start: float, *, done: bool) -> Answer:
    timings = request["info"]["timings"]
    first, last = timings["first_token_iteration"], timings["last_token_iteration"]
    sent = timings["request_start"]
    return Answer(
        wanted=max(0.0, (timings["targeted_start"] or sent) - start),
        sent=sent - start,
        first=None if first is None else first - start,
        last=(first if last is None else last) - start if first is not None else 0.0,
        tokens=request["output_metrics"]["text_tokens"] or timings["token_iterations"],
        done=done,
    )


def closed_figures(report: GuidellmReport, load: Load) -> LoadFigures:
    """Figures of a closed loop: a request begins when it is sent.

    Raises `EngineSlowError` if a client had no whole answer: those are the slowest, and a run without them would
    look better than it was.
    """
    clients = _clients(report.answers, load.clients)
    if len(clients) < load.clients:
        raise EngineSlowError(
            f"{len(clients)} of {load.clients} clients got a complete answer within {report.seconds:.0f} s"
        )
    waited = [one.first - one.sent for one in report.answers if one.first is not None]
    return _figures(report, waited, closed_throughput(clients))


def _clients(answers: Sequence[Answer], count: int) -> list[tuple[float, float]]:
    """Tokens and seconds of each client that had a whole answer.

    A report does not say whose an answer is: one is given to any of those that wait no more.
    """
    free = [(0.0, 0.0)] * count  # when each of them had its last answer, and the tokens of all of its own
    busy = []
    for one in sorted(answers, key=lambda answer: answer.sent):
        ended, tokens = heapq.heappop(free) if free else (0.0, 0.0)
        if one.done:
            heapq.heappush(free, (one.last, tokens + one.tokens))
        else:
            busy.append((ended, tokens))
    return [(tokens, ended) for ended, tokens in (*free, *busy) if tokens]


def open_figures(report: GuidellmReport) -> tuple[LoadFigures, tuple[Wait, ...]]:
    """Figures of an open loop: a request begins when it was to be sent; without a token it waited until the end."""
    waited = [(report.seconds if one.first is None else one.first) - one.wanted for one in report.answers]
    waits = tuple(
        Wait(arrived=one.wanted, first=one.first, done=one.last if one.done else None)
        for one in report.answers
    )
    tokens = sum(one.tokens for one in report.answers if one.first is not None)
    return _figures(report, waited, tokens / report.seconds), waits


def _figures(report: GuidellmReport, waited: Sequence[float], tokens_per_s: float) -> LoadFigures:
    begun = [one for one in report.answers if one.first is not None and one.tokens > 0]
    steps = [
        1000 * (one.last - one.first) / (one.tokens - 1)
        for one in begun
        if one.first is not None and one.tokens > 1
    ]
    if not steps:
        raise EngineSlowError(f"no answer had two tokens within {report.seconds:.0f} s")
    return figures_of(
        requests=len(begun),
        seconds=report.seconds,
        tokens_per_s=tokens_per_s,
        ttft_ms=[1000 * wait for wait in waited],
        tpot_ms=[step for step in steps if step >= _FASTEST_MS],
    )
