"""How many tokens a step: what the search asks for, on servers that are computed after measured ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from inline_snapshot import snapshot

from tasks.batching.models import (
    Devices,
    Footprint,
    Limits,
    PlacedAsk,
    PlacedDecision,
    PlacedRun,
    Placement,
    Requests,
    Run,
    Space,
    StepTokens,
)
from tasks.batching.placement.plan import next_placed_step
from tasks.batching.placement.trials import limits_of

GB = 10**9
Measure = Callable[[Placement, int], Run]


def space(prompt: int = 512, answer: int = 32, *, by_slot: bool = True, **limits: object) -> Space:
    """llama.cpp on a processor."""
    return Space(
        knob=None,
        footprint=Footprint(layers=4, layer_bytes=GB, output_bytes=GB, kv_bytes=1, heads=2, kv_heads=1),
        devices=Devices(host_bytes=64 * GB),
        limits=Limits.model_validate({"memory_bytes": 60 * GB, "max_batch": 8} | limits),
        batched_tokens=StepTokens(default=2048, values=(64, 128, 256, 512, 1024, 4096, 8192)),
        micro_batch_tokens=StepTokens(default=512, values=(64, 128, 256, 1024, 2048)),
        requests=Requests(prompt_tokens=prompt, output_tokens=answer),
        by_slot=by_slot,
    )


def server(prompt: int = 512, *, micro_helps: float = 0.0, token_bytes: int = 0) -> Measure:
    """A step of one token for each slot takes 10 ms and 1 ms more for each; a prompt's token 0.2 ms. The longest
    pause is a step full of the others' prompts; small steps cost a little throughput."""

    def measure(placement: Placement, batch: int) -> Run:
        batched, micro = placement.batched_tokens or 2048, placement.micro_batch_tokens or 512
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


def search(measure: Measure, space: Space) -> tuple[PlacedDecision, list[PlacedAsk]]:
    history: list[PlacedRun] = []
    asked: list[PlacedAsk] = []
    for _ in range(100):
        step = next_placed_step(history, space)
        if isinstance(step, PlacedDecision):
            return step, asked
        asked.append(step)
        history += [
            PlacedRun(placement=step.placement, run=measure(step.placement, step.batch))
            for _ in range(step.runs)
        ]
    raise AssertionError("the search does not end")


def told(asked: Sequence[PlacedAsk]) -> list[tuple[int | None, int | None]]:
    return list(dict.fromkeys((a.placement.batched_tokens, a.placement.micro_batch_tokens) for a in asked))


def test_the_engines_own_steps_stay_where_no_others_give_more() -> None:
    decision, asked = search(server(), space())
    assert (decision.placement, decision.batch) == (Placement(), 8)
    assert told(asked) == [(None, None), (4096, None), (None, 1024)]
    assert sum(ask.runs for ask in asked if ask.placement.told) == 2, "each of them once"
    assert decision.reason == snapshot(
        "the engine's own steps: 100% of the throughput of 4096 tokens a step, the most of 3 settings; batch 8: the most throughput of 4 sizes; nothing larger may be tried"
    )


def test_shorter_steps_serve_more_where_pauses_end_the_sizes() -> None:
    """By its own steps three sequences wait 38 ms for a token."""
    decision, asked = search(server(), space(latency_ms={"tpot_p95": 25.0}))
    assert (decision.placement, decision.batch) == (Placement(batched_tokens=256), 8)
    assert [(ask.placement.batched_tokens, ask.batch) for ask in asked] == [
        *((None, 1), (None, 2), (None, 4), (None, 3)),
        *((256, 2), (256, 4), (256, 8)),
        *((128, 8), (256, 8)),
    ]
    assert decision.reason == snapshot(
        "256 tokens a step: the most throughput of 3 settings; batch 8: the most throughput of 3 sizes; nothing larger may be tried"
    )


def test_more_tokens_at_once_are_taken_where_they_give_more() -> None:
    decision, asked = search(server(micro_helps=0.2), space())
    assert decision.placement == Placement(micro_batch_tokens=1024)
    assert told(asked) == [(None, None), (4096, None), (None, 1024), (None, 2048)]
    assert "1024 tokens computed at once: the most throughput of 4 settings" in decision.reason


def test_fewer_tokens_at_once_where_memory_ends_the_sizes() -> None:
    """Beside 300 MB for what is computed there is room for three sequences, and for five beside half of that."""
    bound = 5 * GB + 600_000_000
    decision, asked = search(server(token_bytes=600_000), space(memory_bytes=bound))
    assert decision.placement == Placement(micro_batch_tokens=128)
    assert (None, 256) in told(asked)
    assert (None, 1024) not in told(asked)


def test_where_no_steps_help_the_reason_is_each_ones() -> None:
    """Pauses are never short enough, and memory is never enough for one."""
    decision, asked = search(server(), space(latency_ms={"tpot_p95": 5.0}))
    assert decision.reason == "not even batch 1 will do: tpot_p95 is 11 ms, 5 ms are wanted"
    assert told(asked) == [(None, None)]
    decision, _ = search(server(token_bytes=10_000), space(memory_bytes=5 * GB))
    assert decision.placement is None
    assert decision.reason == snapshot(
        "the engine's own steps: not even batch 1 will do: needs 5.11 GB of memory, 5.00 GB may be used; 256 tokens computed at once: not even batch 1 will do: needs 5.10 GB of memory, 5.00 GB may be used"
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
    placement = Placement(batched_tokens=tokens)
    assert limits_of(placement, space(max_batch=256)).max_batch == most
    assert limits_of(placement, space(max_batch=256, by_slot=False)).max_batch == min(tokens, 256)


def test_a_proposal_has_no_more_slots_than_its_steps_are_enough_for() -> None:
    """Of 64 tokens a step three slots' prompts leave nothing to a fourth, where answers are short."""
    _, asked = search(server(128), space(128, 4, max_batch=32, latency_ms={"tpot_p95": 20.0}))
    found = {
        ask.placement.batched_tokens: ask.batch for ask in reversed(asked) if ask.placement.batched_tokens
    }
    assert found == {64: 2}


def test_on_gpus_steps_come_after_the_layers_and_teach_nothing_of_them() -> None:
    placed = space().model_copy(
        update={"knob": "offload", "devices": Devices(gpu_bytes=(24 * GB,), host_bytes=64 * GB)}
    )
    decision, asked = search(server(token_bytes=10_000_000), placed)
    assert decision.placement == Placement(gpu_layers=5)
    assert [ask.placement.gpu_layers for ask in asked] == [5] * len(asked)
    assert told(asked) == [(None, None), (4096, None), (None, 1024)]
    assert decision.reason.startswith(
        "all 5 layers on the GPUs: 100% of the throughput of all 5 layers on the GPUs, 4096"
    )
