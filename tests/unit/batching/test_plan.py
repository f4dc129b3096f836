"""The batch search on synthetic rigs: what it answers always keeps its promises."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inline_snapshot import snapshot

from tasks.batching.judging import summarise
from tasks.batching.models import Ask, Decision, Fit, Limits, Run
from tasks.batching.plan import MORE_REPEATS, REPEATS, next_step
from tasks.batching.priors import find_prior
from tasks.core.records import Record, new_record
from tasks.core.verdicts import FAULT, StageName
from tasks.engines.failures import Failure, FailureKind

HOST = "sha256:here"


@dataclass(frozen=True)
class Rig:
    """Throughput that saturates, memory with an offset, latency that grows; a cliff where memory ends."""

    half: float = 8
    fixed: float = 1e9
    each: float = 1e8
    bend: float = 0
    latency: float = 10
    latency_each: float = 1
    cliff: float = 10e9
    noise: tuple[float, ...] = (0,)

    def run(self, batch: int, number: int) -> Run:
        noise = 1 + self.noise[number % len(self.noise)]
        memory = self.fixed + self.each * batch + self.bend * batch * batch
        if memory > self.cliff:
            return Run(batch=batch, oom=True)
        return Run(
            batch=batch,
            peak_bytes=int(memory),
            latency_ms={"latency": (self.latency + self.latency_each * batch) * noise},
            throughput=1000 * batch / (batch + self.half) * noise,
        )


def search(
    measure: Callable[[int, int], Run], limits: Limits, prior: int | None = None
) -> tuple[Decision, list[Run]]:
    history: list[Run] = []
    for _ in range(500):
        step = next_step(history, limits, prior)
        if isinstance(step, Decision):
            return step, history
        for _ in range(step.runs):
            history.append(measure(step.batch, len(history)))
            if not history[-1].answered:
                break
    raise AssertionError("the search does not end")


def sizes_of(history: Sequence[Run]) -> list[int]:
    return list(dict.fromkeys(run.batch for run in history))


rigs = st.builds(
    Rig,
    half=st.floats(0.1, 200),
    fixed=st.floats(1e6, 9.5e9),
    each=st.floats(1e5, 4e9),
    bend=st.sampled_from([0, 0, 1e5, 1e7]),
    latency=st.floats(0.1, 200),
    latency_each=st.floats(0, 20),
    noise=st.lists(st.floats(-0.2, 0.2), min_size=1, max_size=9).map(tuple),
)
limits_of_any_kind = st.builds(
    Limits,
    memory_bytes=st.integers(10**6, 9 * 10**9),
    latency_ms=st.one_of(st.just({}), st.floats(1, 300).map(lambda bound: {"latency": bound})),
    tolerance=st.floats(0, 0.5),
    max_batch=st.integers(1, 300),
)


@settings(max_examples=400, deadline=None)
@given(rig=rigs, limits=limits_of_any_kind, prior=st.none() | st.integers(1, 2000))
def test_the_answer_was_measured_and_keeps_every_bound(rig: Rig, limits: Limits, prior: int | None) -> None:
    decision, history = search(rig.run, limits, prior)
    assert all(1 <= run.batch <= limits.max_batch for run in history)
    by_size = {size: [run for run in history if run.batch == size] for size in sizes_of(history)}

    def keeps(runs: Sequence[Run]) -> bool:
        if any(run.oom for run in runs):
            return False
        bound = limits.latency_ms.get("latency", float("inf"))
        return (
            max(run.peak_bytes or 0 for run in runs) <= limits.memory_bytes
            and statistics.median(run.latency_ms["latency"] for run in runs) <= bound
        )

    fitting = {
        size: statistics.median(run.throughput or 0 for run in runs)
        for size, runs in by_size.items()
        if keeps(runs)
    }
    doubtful = {
        size
        for size, found in summarise(history, limits).items()
        if found.runs >= REPEATS
        and any(found.latency_high_ms[name] > bound * 1.000001 for name, bound in limits.latency_ms.items())
    }
    if decision.batch is None:
        assert fitting.keys() <= doubtful
        assert 1 in by_size  # the easiest size was tried before giving up
        return
    assert len(by_size[decision.batch]) >= REPEATS
    assert decision.batch not in doubtful
    fitting = {size: throughput for size, throughput in fitting.items() if size not in doubtful}
    enough = max(fitting.values()) * (1 - limits.tolerance)
    assert decision.batch == min(size for size, throughput in fitting.items() if throughput >= enough)


@settings(max_examples=200, deadline=None)
@given(rig=rigs, limits=limits_of_any_kind)
def test_without_noise_the_answer_is_near_the_best_there_is(rig: Rig, limits: Limits) -> None:
    quiet = Rig(**{**rig.__dict__, "noise": (0,), "bend": 0})
    every = summarise([quiet.run(size, 0) for size in range(1, limits.max_batch + 1)], limits)
    best = max((size.throughput for size in every.values() if size.fits), default=None)
    decision, history = search(quiet.run, limits)
    assert (decision.batch is None) == (best is None)
    if decision.batch is not None and best is not None:
        chosen = every[decision.batch]
        assert chosen.fits
        # Sizes are told apart to a tenth, and the tolerance is the user's.
        assert chosen.throughput >= best * (1 - limits.tolerance) * 0.85
    assert sum(run.oom for run in history) <= 1
    assert len(sizes_of(history)) <= 16


def test_sizes_that_cannot_fit_are_skipped() -> None:
    limits = Limits(memory_bytes=int(0.9 * 10e9), max_batch=4096)
    decision, history = search(Rig(each=3e8).run, limits)
    assert sizes_of(history) == snapshot([1, 2, 4, 8, 16, 26])
    assert not any(run.oom for run in history)
    assert decision == snapshot(Decision(batch=26, reason="the most throughput of 6 sizes"))


def test_a_good_prior_saves_probes() -> None:
    limits = Limits(memory_bytes=int(0.9 * 10e9), max_batch=4096)
    rig = Rig(each=3e8)
    best = search(rig.run, limits)[0].batch
    decision, history = search(rig.run, limits, best)
    assert decision.batch == best
    assert sizes_of(history) == snapshot([26, 13])


def test_a_prior_that_is_too_big_falls_back_to_one() -> None:
    limits = Limits(memory_bytes=int(0.9 * 10e9), max_batch=4096)
    decision, history = search(Rig(each=3e8).run, limits, 100)
    assert sizes_of(history) == snapshot([100, 1, 2, 4, 8, 16, 26])
    assert decision.batch == snapshot(26)


def test_a_prior_that_is_too_small_grows_and_one_too_large_for_the_tolerance_shrinks() -> None:
    limits = Limits(memory_bytes=9 * 10**9, max_batch=64)
    assert search(Rig(half=8).run, limits, 2)[0].batch == search(Rig(half=8).run, limits)[0].batch
    flat, history = search(Rig(half=0.01).run, limits, 32)
    assert flat.batch == 1
    assert sizes_of(history) == snapshot([32, 64, 16, 8, 4, 2, 1])


def test_doubling_stops_where_throughput_is_flat() -> None:
    _, history = search(Rig(half=0.5, each=1).run, Limits(memory_bytes=9 * 10**9, max_batch=4096))
    assert sizes_of(history) == snapshot([1, 2, 4, 8, 16, 32, 64, 128])


def test_the_latency_objective_is_bisected_and_measured_again_at_the_boundary() -> None:
    limits = Limits(memory_bytes=9 * 10**9, latency_ms={"latency": 25.0}, max_batch=64)
    decision, history = search(Rig(each=1e6).run, limits)
    assert decision.batch == 14
    assert decision.reason.split("; ") == snapshot(
        [
            "the smallest of 8 sizes with 98% of the most throughput (batch 15)",
            "batch 16 latency is 26 ms, the limit is 25 ms",
        ]
    )
    assert [
        (size.batch, size.runs, size.fit.value) for size in summarise(history, limits).values()
    ] == snapshot(
        [
            (1, 1, "fits"),
            (2, 1, "fits"),
            (4, 1, "fits"),
            (8, 1, "fits"),
            (12, 1, "fits"),
            (14, 5, "fits"),
            (15, 5, "fits"),
            (16, 3, "too slow"),
        ]
    )


def test_what_only_chance_lets_through_is_not_answered() -> None:
    limits = Limits(memory_bytes=9 * 10**9, latency_ms={"latency": 25.0}, max_batch=64)
    noise = (-0.02, 0.03, -0.04, 0.01, -0.03, 0.02, -0.01)
    decision, history = search(Rig(each=1e6, noise=noise).run, limits)
    figures = summarise(history, limits)
    assert decision.batch is not None
    assert figures[decision.batch].latency_high_ms["latency"] <= 25
    by_median = [size.batch for size in figures.values() if size.fits]
    assert decision.batch < max(by_median), "a larger one kept the bound by its median alone"


def test_where_nothing_is_sure_it_is_measured_often_and_then_refused() -> None:
    limits = Limits(memory_bytes=9 * 10**9, latency_ms={"latency": 11.05}, max_batch=64)
    decision, history = search(Rig(noise=(-0.05, 0.05)).run, limits)
    assert decision.batch is None
    assert decision.reason.startswith("not even batch 1 is sure to work: latency may be 11.")
    assert len([run for run in history if run.batch == 1]) == MORE_REPEATS[-1]


def test_what_misses_by_chance_is_measured_until_that_shows() -> None:
    """One sequence takes 11 ms; its first runs do not keep 11.5, the rest do. What misses by more is none at once."""
    noise = (0.06, 0.05, 0.07, *([-0.01, 0.01] * 20))
    bound = {"latency": 11.5}
    decision, history = search(
        Rig(noise=noise).run, Limits(memory_bytes=9 * 10**9, latency_ms=bound, max_batch=1)
    )
    assert decision.batch == 1
    assert len(history) in MORE_REPEATS
    decision, history = search(
        Rig(noise=(0.01, -0.01)).run,
        Limits(memory_bytes=9 * 10**9, latency_ms={"latency": 10.5}, max_batch=1),
    )
    assert decision.batch is None
    assert len(history) == 3


def test_none_says_why() -> None:
    reasons = [
        search(Rig(fixed=8e9).run, Limits(memory_bytes=5 * 10**9, max_batch=8))[0],
        search(Rig(fixed=4e5, each=1e5).run, Limits(memory_bytes=4 * 10**5, max_batch=8))[0],
        search(Rig(fixed=11e9).run, Limits(memory_bytes=5 * 10**9, max_batch=8))[0],
        search(Rig(latency=99).run, Limits(memory_bytes=5 * 10**9, latency_ms={"latency": 50}, max_batch=8))[
            0
        ],
        search(Rig().run, Limits(memory_bytes=5 * 10**9, latency_ms={"ttft_p95": 50}, max_batch=8))[0],
        search(
            lambda batch, _: Run.failing(batch, Failure(kind=FailureKind.NOT_STARTED, what="no such file")),
            Limits(memory_bytes=1, max_batch=8),
        )[0],
    ]
    assert all(reason.batch is None for reason in reasons)
    assert [reason.reason for reason in reasons] == snapshot(
        [
            "not even batch 1 works: needs 8.10 GB of memory, 5.00 GB may be used",
            "not even batch 1 works: needs 0.5 MB of memory, 0.4 MB may be used",
            "not even batch 1 works: out of memory",
            "not even batch 1 works: latency is 100 ms, the limit is 50 ms",
            "not even batch 1 works: ttft_p95 was not measured, the limit is 50 ms",
            "not even batch 1 works: did not start: no such file",
        ]
    )


def test_one_failure_is_a_mishap_two_are_an_answer() -> None:
    failures = iter([True, False, True])

    def measure(batch: int, number: int) -> Run:
        if batch == 4 and next(failures, False):
            return Run.failing(batch, Failure(kind=FailureKind.CRASHED, what="connection reset"))
        return Rig(each=1).run(batch, number)

    limits = Limits(memory_bytes=9 * 10**9, max_batch=4, tolerance=0)
    decision, history = search(measure, limits)
    sizes = summarise(history, limits)
    # 4 failed once and was measured; when it failed again among its repeats it was given up.
    assert decision.batch == 3
    assert sizes[4].fit == Fit.FAILED
    assert sizes[4].why == "crashed: connection reset"
    assert [failure.kind for failure in sizes[4].failures] == [FailureKind.CRASHED] * 2


def test_out_of_memory_is_not_tried_again() -> None:
    _, history = search(Rig(each=4e9).run, Limits(memory_bytes=9 * 10**9, max_batch=64))
    assert [run.batch for run in history if run.oom] == []
    _, history = search(
        Rig(fixed=1e9, each=1e5, bend=1.2e9).run, Limits(memory_bytes=9 * 10**9, max_batch=64)
    )
    assert len([run.batch for run in history if run.oom]) <= 1


def test_asks_are_values() -> None:
    limits = Limits(memory_bytes=9 * 10**9, max_batch=64)
    assert next_step([], limits) == Ask(batch=1)
    assert next_step([], limits, prior=1000) == Ask(batch=64)


# --- priors ------------------------------------------------------------------------------------------------

INPUTS: dict[str, Any] = {
    "engine": "llama.cpp",
    "model_digest": "m",
    "format": "q8_0",
    "context": 512,
    "limits": {},
}


def record(batch: int | None, consulted: Sequence[str] = (), host: str = HOST, **inputs: Any) -> Record:
    return new_record(
        stage=StageName.BATCHING,
        subject="tiny",
        host_fingerprint=host,
        inputs_digest="sha256:x",
        outcome="chosen" if batch else FAULT,
        seconds=1,
        evidence={"inputs": INPUTS | inputs, "result": {"batch": batch}} if batch else {"error": {}},
        consulted=consulted,
    )


def found(records: Sequence[Record], **inputs: Any) -> int | None:
    prior = find_prior(records, INPUTS | inputs, HOST)
    return prior.batch if prior else None


def test_the_nearest_record_is_the_prior() -> None:
    other_format = record(3, format="f16")
    far = record(4, context=8192)
    near = record(5, context=1024)
    newest = record(6, context=1024)
    assert found([], limits={"new": 1}) is None
    assert found([other_format], limits={"new": 1}) == 3
    assert found([other_format, far], limits={"new": 1}) == 4
    assert found([other_format, far, near], limits={"new": 1}) == 5
    assert found([newest, other_format, far, near], limits={"new": 1}) == 6


@pytest.mark.parametrize(
    "unlike",
    [record(8, host="sha256:there"), record(8, engine="vllm"), record(8, model_digest="n"), record(None)],
    ids=["host", "engine", "model", "fault"],
)
def test_records_of_something_else_are_no_prior(unlike: Record) -> None:
    assert found([unlike], limits={"new": 1}) is None


def test_a_repeated_search_keeps_the_prior_it_had() -> None:
    """Else every search would be new knowledge for the one before it, and nothing would be answered from a record."""
    first = record(4)
    assert find_prior([first], INPUTS, HOST) is None
    second_inputs = INPUTS | {"context": 1024}
    prior = find_prior([first], second_inputs, HOST)
    assert prior is not None
    assert prior.record == first.id
    second = record(8, consulted=[prior.record], context=1024)
    assert find_prior([first, second], second_inputs, HOST) == prior
    assert find_prior([first, second], INPUTS, HOST) is None
    assert find_prior([second], second_inputs, HOST) is None  # the record it consulted is gone


def test_a_size_at_which_sequences_are_put_off_does_not_fit() -> None:
    """Of an engine that takes all memory beforehand, its peak is the same at every size."""

    def measure(batch: int, number: int) -> Run:
        found = Rig(each=0, latency_each=0).run(batch, number)
        return found.model_copy(update={"preemptions": 0 if batch <= 8 else 3})

    limits = Limits(memory_bytes=8_000_000_000, max_batch=64, tolerance=0.0)
    decision, history = search(measure, limits)
    assert decision.batch == 8
    assert 16 in sizes_of(history)
    larger = summarise(history, limits)[16]
    assert (larger.fit, larger.preemptions) == (Fit.MEMORY, 3)
    assert larger.why == "has no room for all its keys and values: 3 preemptions a run"
    one_mishap = [Run(batch=1, peak_bytes=1, throughput=1.0, preemptions=count) for count in (0, 0, 4)]
    assert summarise(one_mishap, limits)[1].fits


def test_a_latency_of_nothing_was_not_measured() -> None:
    """A size is never accepted on it, however often it is told."""
    limits = Limits(memory_bytes=10**9, latency_ms={"tpot_p95": 50}, max_batch=8)
    decision, history = search(
        lambda batch, _: Run(batch=batch, peak_bytes=1, latency_ms={"tpot_p95": 0.0}, throughput=100.0),
        limits,
    )
    assert decision.batch is None
    assert decision.reason == (
        "not even batch 1 works: tpot_p95 was not measured: each answer came in one piece, the limit is 50 ms"
    )
    assert [run.batch for run in history] == [1] * REPEATS


def test_a_size_is_not_refused_because_once_nothing_was_measured() -> None:
    """A busy host may keep the clients from seeing tokens come one by one."""
    limits = Limits(memory_bytes=10**9, latency_ms={"tpot_p95": 50}, max_batch=1)
    blind = iter([True, True])

    def run(batch: int, _: int) -> Run:
        latency = {} if next(blind, False) else {"tpot_p95": 20.0}
        return Run(batch=batch, peak_bytes=1, latency_ms=latency, throughput=100.0)

    decision, _ = search(run, limits)
    assert decision.batch == 1
