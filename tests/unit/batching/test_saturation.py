"""Whether an engine keeps up, on generated queues whose load is known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from queues import wait_in_queue

from tasks.batching.saturation import FEWEST, judge_waits
from tasks.core.load import Arrivals, Wait

pytestmark = pytest.mark.slow

SEEDS = range(200)


def told_saturated(load: float, *, servers: int, requests: int = 100, service_s: float = 1.0) -> float:
    """The share of seeds in which a queue at `load` times what it can do is called saturated."""
    found = 0
    for seed in SEEDS:
        waits = wait_in_queue(
            servers=servers,
            service_s=service_s,
            rate_per_s=load * servers / service_s,
            requests=requests,
            spread=0.25,
            seed=seed,
            drain_s=1e9,
        )
        found += judge_waits(waits).saturated
    return found / len(SEEDS)


@pytest.mark.parametrize("servers", [1, 4, 16])
def test_stable_queues_keep_up(servers: int) -> None:
    assert told_saturated(0.5, servers=servers) == 0
    assert told_saturated(0.8, servers=servers) <= 0.03
    assert told_saturated(0.9, servers=servers, requests=200) <= 0.05


@pytest.mark.parametrize("servers", [1, 4, 16])
def test_overloaded_queues_do_not(servers: int) -> None:
    assert told_saturated(1.3, servers=servers) >= 0.95
    assert told_saturated(1.6, servers=servers) >= 0.99
    assert told_saturated(3, servers=servers) == 1


@given(
    servers=st.integers(1, 32),
    service_s=st.floats(1e-3, 30),
    load=st.floats(1.3, 20),
    seed=st.integers(0, 10**6),
)
def test_constant_arrivals_leave_no_chance(servers: int, service_s: float, load: float, seed: int) -> None:
    """D/D/c: whatever the scale, below 1 nobody waits, above all wait longer and longer."""

    def judge(load: float) -> bool:
        waits = wait_in_queue(
            servers=servers,
            service_s=service_s,
            rate_per_s=load * servers / service_s,
            requests=max(100, 8 * servers),
            arrivals=Arrivals.CONSTANT,
            seed=seed,
            drain_s=1e9,
        )
        return judge_waits(waits).saturated

    assert judge(load)
    assert not judge(1 / load)


def test_growth_is_what_theory_says() -> None:
    """At x times the capacity, waits grow by x - 1."""
    waits = wait_in_queue(
        servers=2, service_s=1, rate_per_s=3, requests=400, arrivals=Arrivals.CONSTANT, drain_s=1e9
    )
    found = judge_waits(waits)
    assert found.growth == pytest.approx(0.5, abs=0.01)
    assert found.later > 0.99
    # 400 requests at 3 a second, 2 a second done: a third is still there.
    assert found.backlog == pytest.approx(133, abs=4)
    assert found.why.startswith("waits grow by 0.50 s a second, 13")


@pytest.mark.parametrize(
    ("load", "words"), [(1.6, "waits grow by "), (3, "were begun by the end"), (90, "begun")]
)
def test_a_run_that_is_cut_off_does_not_look_better_for_what_it_lost(load: float, words: str) -> None:
    cut = wait_in_queue(servers=1, service_s=1, rate_per_s=load, drain_s=0.5)
    assert any(wait.first is None for wait in cut)
    found = judge_waits(cut)
    assert found.saturated
    assert words in found.why


def test_an_engine_that_begins_all_and_ends_none_is_saturated() -> None:
    waits = [Wait(arrived=at / 10, first=at / 10 + 0.01, done=at / 10 + 1 + at / 20) for at in range(100)]
    assert judge_waits(waits).saturated


def test_longer_waits_of_an_engine_that_fills_up_are_not_growth() -> None:
    """The first requests find it empty; after them all wait alike."""
    waits = [
        Wait(arrived=at / 10, first=at / 10 + min(1, at / 15), done=at / 10 + min(1, at / 15) + 1)
        for at in range(100)
    ]
    assert not judge_waits(waits).saturated


def test_a_flood_that_all_wait_for_alike_is_saturation() -> None:
    """60 requests in 12 ms: a client that is busy itself sees all first tokens at once, and no wait longer than another."""
    flood = [Wait(arrived=at / 5000, first=0.65, done=0.7) for at in range(60)]
    found = judge_waits(flood)
    assert found.growth < 0
    assert found.saturated
    assert found.why.endswith("most waited longer than all took to come")


def test_few_requests_tell_nothing() -> None:
    waits = wait_in_queue(servers=1, service_s=1, rate_per_s=9, requests=FEWEST - 1, drain_s=1e9)
    found = judge_waits(waits)
    assert (found.growth, found.saturated) == (0, False)
    assert found.backlog > 10
    at_once = [Wait(arrived=0, first=at, done=at) for at in range(50)]
    assert not judge_waits(at_once).saturated
