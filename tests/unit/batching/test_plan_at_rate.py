"""The batch search in an open loop, on rigs that are queues: the smallest size that keeps up."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inline_snapshot import snapshot
from queues import wait_in_queue

from tasks.batching.judging import summarise
from tasks.batching.models import Decision, Fit, Limits, Run
from tasks.batching.plan import REPEATS, next_step
from tasks.batching.saturation import judge_waits
from tasks.core.load import Arrivals

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Server:
    """Slots that share one engine: a sequence takes `alone_s` by itself, and `more` of it longer for each other one."""

    rate_per_s: float
    alone_s: float = 1.0
    more: float = 0.1
    fixed: float = 1e9
    each: float = 1e8
    arrivals: Arrivals = Arrivals.CONSTANT

    def service_s(self, slots: int) -> float:
        return self.alone_s * (1 + self.more * (slots - 1))

    def load(self, slots: int) -> float:
        """What is asked, as a share of what this many slots can do."""
        return self.rate_per_s * self.service_s(slots) / slots

    def run(self, slots: int, seed: int) -> Run:
        waits = wait_in_queue(
            servers=slots,
            service_s=self.service_s(slots),
            rate_per_s=self.rate_per_s,
            requests=200,
            arrivals=self.arrivals,
            seed=seed,
            drain_s=1e9,
        )
        ttft = sorted((wait.first or 0) - wait.arrived for wait in waits)
        span = max(wait.done or 0 for wait in waits)
        return Run(
            batch=slots,
            peak_bytes=int(self.fixed + self.each * slots),
            latency_ms={"ttft_p95": 1000 * ttft[189], "tpot_p95": 100 * self.service_s(slots)},
            throughput=200 * 10 / span,
            saturation=judge_waits(waits),
        )


def search(
    server: Server, limits: Limits, prior: int | None = None, broken: int | None = None
) -> tuple[Decision, list[Run]]:
    history: list[Run] = []
    for _ in range(200):
        step = next_step(history, limits, prior)
        if isinstance(step, Decision):
            return step, history
        for _ in range(step.runs):
            if broken is not None and step.batch >= broken:
                history.append(Run(batch=step.batch, oom=True))
                break
            history.append(server.run(step.batch, len(history)))
    raise AssertionError("the search does not end")


def limits_for(server: Server, **bounds: object) -> Limits:
    return Limits.model_validate(
        {"memory_bytes": 10**12, "max_batch": 64, "rate_per_s": server.rate_per_s} | bounds
    )


def sizes_of(history: list[Run]) -> list[int]:
    return list(dict.fromkeys(run.batch for run in history))


def test_the_search_doubles_until_requests_no_longer_wait() -> None:
    server = Server(rate_per_s=4)
    decision, history = search(server, limits_for(server))
    assert sizes_of(history) == snapshot([1, 2, 4, 8, 6, 5])
    assert decision == snapshot(
        Decision(
            batch=6,
            reason="the smallest of 6 sizes that keeps up with 4 requests/s; batch 5 does not keep up with 4 requests/s: waits grow by 0.12 s a second, 26 requests were unanswered when the last one was sent",
        )
    )


@pytest.mark.parametrize("prior", [1, 5, 8, 64])
def test_it_comes_to_the_same_from_anywhere(prior: int) -> None:
    server = Server(rate_per_s=4)
    decision, history = search(server, limits_for(server), prior)
    assert decision.batch in (6, 7)
    assert sizes_of(history)[0] == prior
    assert len(sizes_of(history)) <= 7


def test_memory_ends_the_way_up() -> None:
    server = Server(rate_per_s=4)
    decision, history = search(server, limits_for(server, memory_bytes=int(1.45e9)))
    assert decision.batch is None
    assert decision.reason.startswith("batch 4 does not keep up with 4 requests/s: waits grow by ")
    assert all((run.peak_bytes or 0) <= 1.45e9 for run in history)
    crashing, history = search(server, limits_for(server), broken=6)
    assert crashing.batch is None
    assert "batch 5 does not keep up" in crashing.reason
    assert crashing.reason.endswith("; batch 6 out of memory")
    assert sum(run.oom for run in history) == 2  # 8, then 6


def test_a_rate_beyond_the_engine_is_none() -> None:
    server = Server(rate_per_s=11)  # however many slots, it does no more than 10
    decision, history = search(server, limits_for(server))
    assert decision.batch is None
    assert decision.reason.startswith("batch 64 does not keep up with 11 requests/s")
    assert {size.fit for size in summarise(history, limits_for(server)).values()} == {Fit.SATURATED}


def test_waiting_for_a_slot_asks_for_more_and_slow_tokens_for_fewer() -> None:
    """At 4 requests/s and random arrivals 6 slots keep up, but a first token takes its time."""
    server = Server(rate_per_s=4, arrivals=Arrivals.POISSON)
    quick, _ = search(server, limits_for(server, latency_ms={"ttft_p95": 500}))
    assert quick.batch is not None
    assert quick.batch > 7
    both, history = search(server, limits_for(server, latency_ms={"ttft_p95": 500, "tpot_p95": 150}))
    assert both.batch is None
    assert "tpot_p95" in both.reason
    assert len(sizes_of(history)) <= 8


@settings(max_examples=150)
@given(
    rate=st.floats(0.1, 30),
    alone_s=st.floats(0.01, 5),
    more=st.floats(0, 0.5),
    each=st.floats(1e6, 1e9),
    prior=st.none() | st.integers(1, 200),
)
def test_the_answer_keeps_up_and_nothing_much_smaller_does(
    rate: float, alone_s: float, more: float, each: float, prior: int | None
) -> None:
    server = Server(rate_per_s=rate, alone_s=alone_s, more=more, each=each)
    limits = limits_for(server, memory_bytes=int(20e9))
    decision, history = search(server, limits, prior)
    fits = [slots for slots in range(1, 65) if server.fixed + each * slots <= limits.memory_bytes]
    keeping = [slots for slots in fits if server.load(slots) <= 1]
    assert len(sizes_of(history)) <= 14
    if decision.batch is None:
        assert not keeping
        return
    # What is asked for a twelfth more than it can do is not told from what keeps up (GROWTH).
    assert server.load(decision.batch) <= 1.1
    assert decision.batch in fits
    assert sum(run.batch == decision.batch for run in history) >= REPEATS
    if keeping:
        assert decision.batch <= min(keeping) + max(1, min(keeping) * 0.12)


def test_one_run_in_doubt_is_outvoted() -> None:
    """A burst may look like saturation once; half of the runs or more must."""
    server = Server(rate_per_s=1, alone_s=0.5)
    good = server.run(1, 0)
    assert good.saturation is not None
    bad = good.model_copy(
        update={"saturation": good.saturation.model_copy(update={"growth": 1.0, "later": 1.0})}
    )
    limits = limits_for(server)
    assert summarise([good, good, bad], limits)[1].fit is Fit.FITS
    assert summarise([good, bad], limits)[1].fit is Fit.SATURATED
    assert summarise([bad], limits)[1].why.startswith(
        "does not keep up with 1 requests/s: waits grow by 1.00"
    )
