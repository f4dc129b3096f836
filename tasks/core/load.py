"""Load on a served model: what clients send, and what they measured."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from enum import StrEnum

from pydantic import Field

from tasks.core.frozen import Frozen


class Prompts(Frozen):
    """What every request of a load looks like, with prompts that no two requests share.

    Lengths are tokens; outputs vary by a quarter around `output_tokens`, so that requests do not run in lockstep.
    An engine that sends no byte for `silence_s` hangs; one that has not finished after `timeout_s` is too slow.
    """

    prompt_tokens: int = Field(ge=1)
    output_tokens: int = Field(ge=2)
    seed: int = 0
    silence_s: float = Field(120, gt=0)
    timeout_s: float = Field(300, gt=0)


class Load(Prompts):
    """A closed loop: each client requests one streamed completion after another.

    The run ends once every client has had a complete answer, `min_s` have passed and `min_requests` are answered, and
    in any case after `max_s`. Unless `whole`, some tokens from every client are enough by then, which is not a valid
    measure if prompts take long, because all clients begin with one.
    """

    clients: int = Field(ge=1)
    min_s: float = Field(0.5, ge=0)
    max_s: float = Field(3, gt=0)
    min_requests: int = Field(4, ge=1)
    whole: bool = True


class Arrivals(StrEnum):
    """How the requests of an open loop are spread over time."""

    CONSTANT = "constant"
    POISSON = "poisson"


class OpenLoad(Prompts):
    """An open loop: `requests` that are sent on schedule, whether or not earlier ones were answered.

    `rate_per_s` is requests per second. After the last one is sent, answers are awaited for at most `drain_s`.
    """

    rate_per_s: float = Field(gt=0)
    arrivals: Arrivals = Arrivals.POISSON
    requests: int = Field(ge=2)
    drain_s: float = Field(10, ge=0)

    def send_times(self) -> tuple[float, ...]:
        """When each request is to be sent, seconds from the start, ascending.

        Poisson arrivals are those of a process with exactly `requests` in the time, that is, uniformly random times,
        so that every run has the requested rate and not one drawn at random.
        """
        if self.arrivals is Arrivals.CONSTANT:
            return tuple(number / self.rate_per_s for number in range(self.requests))
        draw = random.Random(f"{self.seed} arrivals")
        return tuple(sorted(draw.uniform(0, self.requests / self.rate_per_s) for _ in range(self.requests)))


class LoadFigures(Frozen):
    """The measurements of a load run.

    `ttft` is the time from when a request was sent (in an open loop: was scheduled) to its first token;
    `tpot` the time per token after the first, None if each answer came in one piece. `requests` counts those
    with a first token before the end. `tokens_per_s` is the sum over all clients, in a closed loop by
    `closed_throughput`. Answers that are `whole`, embeddings or scores that come in one piece, count one each instead
    of tokens, and `ttft` is the time until they are there.
    """

    requests: int = Field(ge=1)
    seconds: float = Field(gt=0)
    tokens_per_s: float = Field(ge=0)
    ttft_p50_ms: float
    ttft_p95_ms: float
    tpot_p50_ms: float | None
    tpot_p95_ms: float | None
    whole: bool = False

    @property
    def latency_ms(self) -> dict[str, float]:
        """What was measured, by name."""
        if self.whole:
            return {"latency_p50": self.ttft_p50_ms, "latency_p95": self.ttft_p95_ms}
        found = {
            "ttft_p50": self.ttft_p50_ms,
            "ttft_p95": self.ttft_p95_ms,
            "tpot_p50": self.tpot_p50_ms,
            "tpot_p95": self.tpot_p95_ms,
        }
        return {name: value for name, value in found.items() if value is not None}


class Wait(Frozen):
    """One request of an open loop, in seconds from the start of the run.

    `arrived` is when it was scheduled, `first` when its first token came, `done` when the answer was
    complete; None if that had not happened by the end.
    """

    arrived: float = Field(ge=0)
    first: float | None = None
    done: float | None = None


def open_load_for(
    *,
    rate_per_s: float,
    arrivals: Arrivals,
    requests: int,
    context: int,
    output_tokens: int,
    prompt_tokens: int | None = None,
    seed: int = 0,
) -> OpenLoad:
    """An open loop whose requests fit into `context` tokens; a long run gets the time that it needs."""
    return OpenLoad(
        rate_per_s=rate_per_s,
        arrivals=arrivals,
        requests=requests,
        prompt_tokens=prompt_tokens or prompt_for(context, output_tokens),
        output_tokens=output_tokens,
        seed=seed,
        timeout_s=2 * requests / rate_per_s + 300,
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest measured value that at least `share` of all values do not exceed."""
    ranked = sorted(values)
    return ranked[max(0, -int(-share * len(ranked) // 1) - 1)]


def closed_throughput(clients: Iterable[tuple[float, float]]) -> float:
    """Tokens/s of a closed loop's clients; for each, the tokens of its answers and the seconds that they took.

    Each client counts with its own complete answers and their time. Dividing all tokens by the length of the
    run would count the time of prompts whose answers were cut off, which grows with the clients and with a
    slower engine.
    """
    return sum(tokens / seconds for tokens, seconds in clients if seconds > 0)


def figures_of(
    *,
    requests: int,
    seconds: float,
    tokens_per_s: float,
    ttft_ms: Sequence[float],
    tpot_ms: Sequence[float],
    whole: bool = False,
) -> LoadFigures:
    """Figures of a run from those of its requests; needs at least one `ttft_ms`."""
    return LoadFigures(
        requests=requests,
        seconds=seconds,
        tokens_per_s=tokens_per_s,
        ttft_p50_ms=percentile(ttft_ms, 0.5),
        ttft_p95_ms=percentile(ttft_ms, 0.95),
        tpot_p50_ms=percentile(tpot_ms, 0.5) if tpot_ms else None,
        tpot_p95_ms=percentile(tpot_ms, 0.95) if tpot_ms else None,
        whole=whole,
    )


def shortest_output(output_tokens: int) -> int:
    """The shortest output of a load with `output_tokens`."""
    return max(2, 2 * output_tokens - longest_output(output_tokens))


def longest_output(output_tokens: int) -> int:
    """The longest output of a load with `output_tokens`."""
    return output_tokens + output_tokens // 4


def load_for_decoding(*, context: int, output_tokens: int, seed: int = 0) -> Load:
    """One client that spends almost all its time in decoding: a tiny prompt, a long answer."""
    room = context - longest_output(output_tokens)
    return Load(
        clients=1,
        prompt_tokens=max(1, min(8, room)),
        output_tokens=output_tokens,
        seed=seed,
        min_requests=2,
        whole=False,
    )


def load_for(
    *, clients: int, context: int, output_tokens: int, prompt_tokens: int | None = None, seed: int = 0
) -> Load:
    """A load whose requests fit into `context` tokens."""
    return Load(
        clients=clients,
        prompt_tokens=prompt_tokens or prompt_for(context, output_tokens),
        output_tokens=output_tokens,
        seed=seed,
    )


def prompt_for(context: int, output_tokens: int) -> int:
    """Tokens of a prompt that fits into `context` with its output: a quarter of it, at most 128."""
    return max(1, min(128, context // 4, context - longest_output(output_tokens)))
