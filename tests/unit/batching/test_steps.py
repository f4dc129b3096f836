"""How many tokens a step: what the search asks for, on servers that are computed after measured ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from inline_snapshot import snapshot
from step_search import Measure, search

from tasks.batching.models import (
    Decision,
    Limits,
    Requests,
    Run,
    SteppedAsk,
    Steps,
    StepSpace,
    StepTokens,
)
from tasks.batching.plan import REPEATS, next_step
from tasks.batching.saturation import Saturation
from tasks.batching.steps.trials import limits_of
from tasks.engines.failures import Failure, FailureKind

GB = 10**9


def space(prompt: int = 512, answer: int = 32, *, by_slot: bool = True, **limits: object) -> StepSpace:
    """llama.cpp on a processor."""
    return StepSpace(
        limits=Limits.model_validate({"memory_bytes": 60 * GB, "max_batch": 8} | limits),
        batched_tokens=StepTokens(default=2048, values=(64, 128, 256, 512, 1024, 4096, 8192)),
        micro_batch_tokens=StepTokens(default=512, values=(64, 128, 256, 1024, 2048)),
        requests=Requests(prompt_tokens=prompt, output_tokens=answer),
        by_slot=by_slot,
    )


def server(prompt: int = 512, *, micro_helps: float = 0.0, token_bytes: int = 0) -> Measure:
    """A step of one token for each slot takes 10 ms and 1 ms more for each; a prompt's token 0.2 ms. The longest
    pause is a step full of the others' prompts; small steps cost a little throughput."""

    def measure(steps: Steps, batch: int) -> Run:
        batched, micro = steps.batched_tokens or 2048, steps.micro_batch_tokens or 512
        pause = 0.2 * min(batched, (batch - 1) * prompt)
        decoding = 10 + batch
        cost = 1 + 8 / batched
        helps = 1 + micro_helps * (micro > 512)
        return Run(
            batch=batch,
            peak_bytes=5 * GB + batch * 100_000_000 + token_bytes * min(micro, batched),
            latency_ms={"ttft_p95": 0.2 * prompt * batch, "tpot_p95": decoding + pause / 8},
            throughput=1000 * batch / (decoding + 0.2 * prompt * batch / 32) / cost * helps,
        )

    return measure


def told(asked: Sequence[SteppedAsk]) -> list[tuple[int | None, int | None]]:
    return list(dict.fromkeys((a.steps.batched_tokens, a.steps.micro_batch_tokens) for a in asked))


def test_the_engines_own_steps_stay_where_no_others_give_more() -> None:
    decision, asked = search(server(), space())
    assert (decision.steps, decision.batch) == (Steps(), 8)
    assert told(asked) == [(None, None), (4096, None), (None, 1024)]
    assert sum(ask.runs for ask in asked if not ask.steps.are_default) == 2, "each of them once"
    assert decision.reason == snapshot(
        "the engine's own steps: 100% of the throughput of 4096 tokens a step, the most of 3 settings; batch 8: the most throughput of 4 sizes; nothing larger may be tried"
    )


def test_shorter_steps_serve_more_where_pauses_end_the_sizes() -> None:
    """By its own steps three sequences wait 38 ms for a token."""
    decision, asked = search(server(), space(latency_ms={"tpot_p95": 25.0}))
    assert (decision.steps, decision.batch) == (Steps(batched_tokens=256), 8)
    assert [(ask.steps.batched_tokens, ask.batch) for ask in asked] == [
        *((None, 1), (None, 2), (None, 4), (None, 3)),
        *((256, 3), (256, 6), (256, 8)),
        *((128, 8), (512, 8)),
        *((256, 8), (None, 2)),
    ]
    assert decision.reason == snapshot(
        "256 tokens a step: the most throughput of 4 settings; 512 tokens a step, batch 8: tpot_p95 is 30.8 ms, the limit is 25 ms; batch 8: the most throughput of 3 sizes; nothing larger may be tried"
    )


def test_other_steps_are_taken_only_over_the_engines_own_measured_as_often() -> None:
    """A single run of these was slow by chance, and one of the others quick."""
    runs: Counter[Steps] = Counter()

    def measure(steps: Steps, batch: int) -> Run:
        runs[steps] += batch == 8
        luck = 1.0 if runs[steps] != 1 else 1.3 if steps.micro_batch_tokens else 0.85
        run = server()(steps, batch)
        return run.model_copy(update={"throughput": (run.throughput or 0) * luck})

    decision, _ = search(measure, space())
    assert (decision.steps, decision.batch) == (Steps(), 8)
    assert runs[Steps()] == REPEATS


def test_shorter_steps_are_tried_where_two_sequences_already_wait_too_long() -> None:
    """At one nobody waits: whether pauses are shorter shows at two. 256 tokens shorten them, and not enough."""
    decision, asked = search(server(), space(latency_ms={"tpot_p95": 17.0}))
    assert [(ask.steps.batched_tokens, ask.batch) for ask in asked][:4] == [
        *((None, 1), (None, 2)),
        *((256, 2), (128, 2)),
    ]
    assert (decision.steps, decision.batch) == (Steps(batched_tokens=64), 4)


def test_in_an_open_loop_shorter_steps_are_tried_where_pauses_end_the_sizes() -> None:
    """Two slots do not keep up with the rate, three wait too long."""
    behind = Saturation(growth=0.4, later=1.0, backlog=31, begun=1.0)

    def measure(steps: Steps, batch: int) -> Run:
        saturation = behind if batch < 3 else behind.model_copy(update={"growth": 0.0})
        run = server()(steps, batch)
        return run.model_copy(update={"saturation": saturation, "throughput": 64.0})

    decision, _ = search(measure, space(latency_ms={"tpot_p95": 25.0}, rate_per_s=2))
    assert (decision.steps, decision.batch) == (Steps(batched_tokens=256), 3)


def test_longer_steps_are_tried_where_slots_would_not_get_one() -> None:
    """With 1500 tokens of prompt and 32 of answer 2048 tokens are enough for 43 slots."""
    decision, _ = search(server(64), space(1500, max_batch=128))
    assert decision.steps is not None
    assert decision.steps.batched_tokens in (4096, 8192)
    assert decision.batch is not None
    assert decision.batch > 43


def test_what_failed_once_is_measured_again() -> None:
    failed: list[Steps] = []

    def measure(steps: Steps, batch: int) -> Run:
        if not steps.are_default and steps not in failed:
            failed.append(steps)
            return Run.failing(batch, Failure(kind=FailureKind.CRASHED, what="it died"))
        return server()(steps, batch)

    decision, _ = search(measure, space(latency_ms={"tpot_p95": 25.0}))
    assert (decision.steps, decision.batch) == (Steps(batched_tokens=256), 8)


def test_more_tokens_at_once_are_taken_where_they_give_more() -> None:
    decision, asked = search(server(micro_helps=0.2), space())
    assert decision.steps == Steps(micro_batch_tokens=1024)
    assert told(asked) == [(None, None), (4096, None), (None, 1024), (None, 2048)]
    assert "1024 tokens computed at once: the most throughput of 4 settings" in decision.reason


def test_fewer_tokens_at_once_where_memory_ends_the_sizes() -> None:
    """Beside 300 MB for what is computed there is room for three sequences, and for five beside half of that."""
    bound = 5 * GB + 600_000_000
    decision, asked = search(server(token_bytes=600_000), space(memory_bytes=bound))
    assert decision.steps == Steps(micro_batch_tokens=128)
    assert (None, 256) in told(asked)
    assert (None, 1024) not in told(asked)


def test_where_no_steps_help_the_reason_is_each_ones() -> None:
    """Pauses are never short enough, and memory is never enough for one."""
    decision, asked = search(server(), space(latency_ms={"tpot_p95": 5.0}))
    assert decision.reason == "not even batch 1 works: tpot_p95 is 11 ms, the limit is 5 ms"
    assert told(asked) == [(None, None)]
    decision, _ = search(server(token_bytes=10_000), space(memory_bytes=5 * GB))
    assert decision.steps is None
    assert decision.reason == snapshot(
        "the engine's own steps: not even batch 1 works: needs 5.11 GB of memory, 5.00 GB may be used; 256 tokens computed at once: not even batch 1 works: needs 5.10 GB of memory, 5.00 GB may be used; 128 tokens computed at once: not even batch 1 works: needs 5.10 GB of memory, 5.00 GB may be used; 64 tokens computed at once: not even batch 1 works: needs 5.10 GB of memory, 5.00 GB may be used"
    )


def test_what_cannot_matter_is_not_tried() -> None:
    """Four prompts of 16 tokens fill no step, however small."""
    _, asked = search(server(16), space(16, max_batch=4))
    assert told(asked) == [(None, None)]


def test_more_a_step_only_as_far_as_prompts_can_fill_it() -> None:
    _, asked = search(server(512), space(512, max_batch=8))
    assert (8192, None) not in told(asked), "4096 hold all of them"


def test_in_an_open_loop_nothing_more_is_tried_than_keeps_up() -> None:
    _, asked = search(server(), space(rate_per_s=2))
    assert told(asked) == [(None, None)]


@pytest.mark.parametrize(("tokens", "most"), [(32, 2), (64, 4), (128, 8), (2048, 121)])
def test_prompts_leave_room_in_a_step_for_the_last_slot(tokens: int, most: int) -> None:
    """Measured with llama.cpp at 512 and 32 tokens: four slots hang at 32 tokens a step, eight at 64; four at 64 and
    eight at 128 do not."""
    steps = Steps(batched_tokens=tokens)
    assert limits_of(steps, space(max_batch=256)).max_batch == most
    assert limits_of(steps, space(max_batch=256, by_slot=False)).max_batch == min(tokens, 256)


@pytest.mark.parametrize("prior", [None, 64])
def test_no_more_slots_are_asked_for_than_steps_are_enough_for(prior: int | None) -> None:
    """Of 64 tokens a step three slots' prompts leave nothing to a fourth, where answers are short."""
    asked_of = space(128, 4, max_batch=128, latency_ms={"tpot_p95": 20.0})
    _, asked = search(server(128), asked_of, prior)
    assert all(ask.batch <= limits_of(ask.steps, asked_of).max_batch for ask in asked)


@pytest.mark.parametrize("half", [Run(batch=2, oom=True), Run(batch=2, peak_bytes=0, throughput=1.0)])
def test_a_size_that_tells_nothing_of_memory_is_not_asked_for_again(half: Run) -> None:
    first = Run(batch=4, peak_bytes=900, throughput=40.0)
    limits = Limits(memory_bytes=1000, max_batch=16)
    history = [first]
    for _ in range(20):
        step = next_step(history, limits, prior=4)
        if isinstance(step, Decision):
            return
        history += [{2: half, 4: first}.get(step.batch, Run(batch=step.batch, oom=True))] * step.runs
    raise AssertionError("the search does not end")
