"""The placement search on machines that are computed: where it puts a model, and what it asks for on the way."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from functools import partial

import pytest
from inline_snapshot import snapshot
from placed_search import Measure, search, searched

from benchmarks.placement_rigs import LADDER, Rig, make_offload_rig, make_split_rig
from benchmarks.placements import space_of
from tasks.batching.judging import doubt
from tasks.batching.models import (
    Devices,
    Footprint,
    Limits,
    PlacedAsk,
    PlacedDecision,
    PlacedRun,
    Placement,
    Run,
    Space,
    StepTokens,
)
from tasks.batching.placement.fits import fit_nonnegative
from tasks.batching.placement.plan import next_placed_step
from tasks.batching.placement.split import sizes
from tasks.batching.placement.trials import limits_of, sort_trials
from tasks.batching.plan import REPEATS
from tasks.batching.saturation import Saturation
from tasks.engines.failures import Failure, FailureKind

GB = 10**9

# --- layers on GPUs and on the host ----------------------------------------------------------------------------


def offload_space(
    *, layer: float = 0.2, cache: float = 0.01, gpu: float = 24, host: float = 64, **limits: object
) -> Space:
    """40 layers; sizes in GB."""
    bounds = {"memory_bytes": int(0.9 * gpu * GB), "max_batch": 64} | limits
    return Space(
        knob="offload",
        footprint=Footprint(
            layers=40,
            layer_bytes=int(layer * GB),
            output_bytes=GB // 4,
            kv_bytes=int(cache * GB),
            heads=32,
            kv_heads=8,
        ),
        devices=Devices(gpu_bytes=(int(gpu * GB),), host_bytes=int(host * GB)),
        limits=Limits.model_validate(bounds),
    )


def machine(space: Space, *, slower: float = 8, beside: float = 0.6, heavier: float = 1.0) -> Measure:
    """A step takes 0.5 ms a layer on the GPU and 0.01 ms more for each sequence."""
    footprint = space.footprint

    def measure(placement: Placement, batch: int) -> Run:
        on = placement.gpu_layers - 1
        off = footprint.layers - on
        weights = footprint.output_bytes + on * footprint.layer_bytes * heavier
        peak = int(weights + on * footprint.kv_bytes * batch + beside * GB)
        if peak > sum(space.devices.gpu_bytes):
            return Run(batch=batch, oom=True)
        step = (on + off * slower) * (0.5 + 0.01 * batch)
        return Run(
            batch=batch, peak_bytes=peak, latency_ms={"tpot_p95": step}, throughput=1000 * batch / step
        )

    return measure


def layers_and_sizes(asked: Sequence[PlacedAsk]) -> list[tuple[int, int, int]]:
    return [(ask.placement.gpu_layers, ask.batch, ask.runs) for ask in asked]


def test_what_fits_with_room_is_placed_whole_and_nothing_else_is_measured() -> None:
    space = offload_space()
    decision, asked = search(machine(space), space)
    assert decision.placement == Placement(gpu_layers=41)
    assert {ask.placement for ask in asked} == {Placement(gpu_layers=41)}
    assert decision.reason == snapshot(
        "all 41 layers on the GPUs: no other was predicted to give more; batch 31: the most throughput of 6 sizes"
    )


def test_what_is_too_large_begins_with_the_most_layers_that_are_predicted_to_fit() -> None:
    space = offload_space(layer=1.0, max_batch=2)
    decision, asked = search(machine(space), space)
    first, *_ = asked
    assert first == PlacedAsk(placement=Placement(gpu_layers=21), batch=1)
    assert decision.placement is not None
    assert 19 <= decision.placement.gpu_layers <= 21


def test_a_measured_peak_corrects_the_prediction() -> None:
    space = offload_space(layer=1.0, max_batch=1)
    decision, asked = search(machine(space, beside=3.0), space)
    tried = [layers for layers, _, _ in layers_and_sizes(asked)]
    assert tried[:2] == [21, 19], "3 GB beside the weights leave room for 18 layers and the output layer"
    assert decision.placement == Placement(gpu_layers=19)
    assert decision.reason == snapshot(
        "19 of 41 layers on the GPUs: the most throughput of 2 placements; 21 of 41 layers on the GPUs, batch 1: needs 23.45 GB of memory, 21.60 GB may be used; batch 1: the most throughput of 1 sizes; nothing larger may be tried"
    )


def test_out_of_memory_asks_for_fewer_until_it_fits() -> None:
    space = offload_space(layer=1.0, max_batch=1)
    decision, asked = search(machine(space, heavier=1.5), space)
    tried = [layers for layers, _, _ in layers_and_sizes(asked)]
    assert tried[0] == 21
    assert decision.placement == Placement(gpu_layers=14), "13 layers of 1.5 GB and the output layer"
    assert len(set(tried)) <= 5


def test_fewer_layers_are_taken_where_the_room_for_caches_gives_more() -> None:
    space = offload_space(layer=0.45, cache=0.02)
    decision, asked = search(machine(space, slower=2), space)
    assert asked[0].placement.gpu_layers == 41
    assert decision.placement is not None
    assert decision.placement.gpu_layers < 41
    whole = max(
        (run.throughput or 0)
        for batch in range(1, 65)
        if (run := machine(space, slower=2)(Placement(gpu_layers=41), batch)).peak_bytes is not None
        and run.peak_bytes <= space.limits.memory_bytes
    )
    found = machine(space, slower=2)(decision.placement, decision.batch or 0)
    assert (found.throughput or 0) > 1.5 * whole


def test_after_a_size_that_is_too_large_the_search_does_not_begin_anew() -> None:
    space = offload_space(layer=0.45, cache=0.002)
    _, asked = search(machine(space, beside=1.5), space, prior=32)
    assert [batch for _, batch, _ in layers_and_sizes(asked)][:2] == [32, 23]


def test_a_slow_host_is_not_tried_twice() -> None:
    space = offload_space(layer=0.45, cache=0.02)
    decision, asked = search(machine(space, slower=60), space)
    assert decision.placement == Placement(gpu_layers=41)
    assert len({ask.placement for ask in asked}) <= 2


def test_what_cannot_fit_is_never_tried() -> None:
    decision, asked = search(machine(offload_space()), offload_space(layer=3.0, host=32))
    assert asked == []
    assert decision == snapshot(
        PlacedDecision(
            placement=None,
            batch=None,
            reason="it is predicted to fit in no way: 120.25 GB of weights and 0.40 GB for one sequence, in 24.00 GB of the GPUs and 32.00 GB of the host, of which 90% may be used",
        )
    )


def test_the_hosts_memory_bounds_the_batch_too() -> None:
    space = offload_space(layer=1.0, cache=0.05, host=26)
    decision, asked = search(machine(space, slower=1.5), space)
    assert decision.batch is not None
    for ask in asked:
        left = 41 - ask.placement.gpu_layers
        assert left * (1.0 + 0.05 * ask.batch) <= 0.9 * 26


def test_what_keeps_no_bound_anywhere_is_told_for_each_placement() -> None:
    space = offload_space(latency_ms={"tpot_p95": 5.0})
    decision, asked = search(machine(space), space)
    assert decision.placement is None
    assert decision.reason == snapshot(
        "all 41 layers on the GPUs: not even batch 1 will do: tpot_p95 is 20.4 ms, 5 ms are wanted"
    )
    assert layers_and_sizes(asked) == [(41, 1, 1)], "on the host it would be slower still"


def test_an_engine_that_crashes_is_not_moved_about() -> None:
    crash = Failure(kind=FailureKind.CRASHED, what="illegal instruction")
    decision, asked = search(lambda _, batch: Run.failing(batch, crash), offload_space())
    assert layers_and_sizes(asked) == [(41, 1, 1), (41, 1, 1)]
    assert decision.reason.endswith("not even batch 1 will do: crashed: illegal instruction")


def test_the_size_of_an_earlier_record_is_where_it_begins() -> None:
    space = offload_space()
    assert next_placed_step([], space, prior=16) == PlacedAsk(placement=Placement(gpu_layers=41), batch=16)
    capped = next_placed_step([], space, prior=4000)
    assert isinstance(capped, PlacedAsk)
    assert capped.batch == 31, "as many as there is predicted to be memory for"


# --- layers split over GPUs ------------------------------------------------------------------------------------


def split_space(
    *, gpus: int = 4, weights: float = 20, heads: int = 32, kv_heads: int = 8, **limits: object
) -> Space:
    bounds = {"memory_bytes": int(0.9 * gpus * 24 * GB), "max_batch": 64} | limits
    return Space(
        knob="tensor_parallel",
        footprint=Footprint(
            layers=40,
            layer_bytes=int(weights * GB / 40),
            output_bytes=0,
            kv_bytes=GB // 400,
            heads=heads,
            kv_heads=kv_heads,
        ),
        devices=Devices(gpu_bytes=(24 * GB,) * gpus, host_bytes=64 * GB),
        limits=Limits.model_validate(bounds),
        batched_tokens=StepTokens(default=2048, values=LADDER),
    )


def test_no_more_sequences_than_tokens_a_step() -> None:
    """vLLM does not start with more."""
    space = split_space(max_batch=4000)
    assert limits_of(Placement(gpus=4), space).max_batch == 2048
    assert limits_of(Placement(gpus=4, batched_tokens=8192), space).max_batch == 4000
    untold = space.model_copy(update={"batched_tokens": StepTokens(values=LADDER)})
    assert limits_of(Placement(gpus=4), untold).max_batch == 4000


def node(
    *,
    talk: float = 1.0,
    beside: float = 0.0,
    free: float = 1.0,
    tokens_help: float = 0.0,
    least_gpus: int = 1,
    flat: bool = False,
    said: str = "",
) -> Measure:
    """A step takes 40 ms of GPU time and 0.2 ms more for each sequence, or `flat` 2 ms for each beyond 20."""

    def measure(placement: Placement, batch: int) -> Run:
        if placement.memory_fraction > free or placement.gpus < least_gpus:
            failure = Failure(kind=FailureKind.OUT_OF_MEMORY, what="it died", log_tail=said or None)
            return Run.failing(batch, failure)
        work = max(40.0, 2.0 * batch) if flat else 40 + 0.2 * batch
        step = work / placement.gpus + talk * (placement.gpus - 1)
        more = 1 + tokens_help * ((placement.batched_tokens or 2048) > 2048)
        return Run(
            batch=batch,
            peak_bytes=int((placement.memory_fraction + beside) * placement.gpus * 24 * GB),
            latency_ms={"tpot_p95": step, "ttft_p95": 10 * step},
            throughput=1000 * batch / step * more,
        )

    return measure


def shapes(asked: Sequence[PlacedAsk]) -> list[tuple[int, float, int | None]]:
    return list(
        dict.fromkeys(
            (a.placement.gpus, a.placement.memory_fraction, a.placement.batched_tokens) for a in asked
        )
    )


@pytest.mark.parametrize(
    ("heads", "kv_heads", "expected"),
    [(32, 8, [1, 2, 4, 8]), (28, 4, [1, 2, 4]), (32, 2, [1, 2, 4, 8]), (40, 10, [1, 2, 5])],
)
def test_only_sizes_that_the_heads_can_be_dealt_out_to(
    heads: int, kv_heads: int, expected: list[int]
) -> None:
    assert sizes(split_space(gpus=8, heads=heads, kv_heads=kv_heads)) == expected


def test_all_gpus_are_taken_where_each_gives_more() -> None:
    decision, asked = search(node(talk=0.1), split_space())
    assert decision.placement == Placement(gpus=4, memory_fraction=0.89)
    assert shapes(asked) == [(4, 0.89, None), (2, 0.89, None), (4, 0.89, 8192)]
    assert sum(ask.placement.gpus == 2 for ask in asked) == 1, "one look is enough"


def test_what_is_slower_at_the_same_size_is_looked_at_once() -> None:
    _, asked = search(node(talk=0, flat=True), split_space())
    assert sum(ask.placement.gpus == 2 for ask in asked) == 1


def test_gpus_that_turn_out_too_few_are_not_told_to_take_less() -> None:
    """As much memory as more of them were seen to find: it is the model that does not fit."""
    _, asked = search(node(talk=20, least_gpus=2), split_space(weights=8))
    assert [fraction for gpus, fraction, _ in shapes(asked) if gpus == 1] == [0.89]


def test_what_was_measured_once_is_not_answered_for_being_preferred() -> None:
    """One GPU: 8 gives too little beside the best, 12 was measured once, 16 often."""
    space = split_space(gpus=2, weights=8, tolerance=0.05, max_batch=16).model_copy(
        update={"batched_tokens": StepTokens()}
    )

    def runs(gpus: int, batch: int, throughput: float, count: int) -> list[PlacedRun]:
        run = Run(batch=batch, peak_bytes=GB, throughput=throughput, latency_ms={})
        return [PlacedRun(placement=Placement(gpus=gpus, memory_fraction=0.89), run=run)] * count

    history = [
        *runs(2, 16, 103.0, 5),
        *runs(2, 8, 80.0, 1),
        *runs(1, 8, 96.0, 5),
        *runs(1, 12, 98.5, 1),
        *runs(1, 16, 100.0, 5),
        *runs(1, 4, 50.0, 1),
    ]
    step = next_placed_step(history, space)
    assert isinstance(step, PlacedDecision)
    assert (step.placement, step.batch) == (Placement(gpus=1, memory_fraction=0.89), 16)
    assert step.reason == snapshot(
        "1 GPU at 0.89 of its memory: 97% of the throughput of 2 GPUs at 0.89 of their memory, the most of 2 placements; batch 16: good enough beside the best"
    )


def test_fewer_gpus_are_better_where_they_give_as_much() -> None:
    decision, asked = search(node(talk=25), split_space(weights=8))
    assert decision.placement is not None
    assert decision.placement.gpus == 1
    assert [gpus for gpus, _, tokens in shapes(asked) if tokens is None] == [4, 2, 1]


def test_gpus_too_few_for_the_weights_are_not_tried() -> None:
    _, asked = search(node(talk=20), split_space(weights=50))
    assert {ask.placement.gpus for ask in asked} == {4}


def test_less_memory_is_asked_for_where_more_is_held_than_told() -> None:
    decision, asked = search(node(beside=0.04), split_space(gpus=1, weights=8))
    assert shapes(asked)[:2] == [(1, 0.89, None), (1, 0.85, None)]
    assert decision.placement == Placement(gpus=1, memory_fraction=0.85)


def test_an_engine_that_says_what_is_free_is_believed() -> None:
    said = (
        "ValueError: Free memory on device cuda:0 (17.52/24.00 GiB) on startup is less than desired GPU memory "
        "utilization (0.89, 21.36 GiB)."
    )
    _, asked = search(node(free=0.73, said=said), split_space(gpus=1, weights=8))
    assert shapes(asked)[:2] == [(1, 0.89, None), (1, 0.72, None)]


def test_an_engine_that_says_nothing_is_told_to_take_less_step_by_step() -> None:
    _, asked = search(node(free=0.8), split_space(gpus=1, weights=8))
    assert [fraction for _, fraction, _ in shapes(asked)[:3]] == [0.89, 0.84, 0.79]


def test_less_memory_is_no_help_to_an_engine_that_wants_more() -> None:
    said = "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`."
    decision, asked = search(node(free=0.1, said=said), split_space(gpus=1))
    assert shapes(asked) == [(1, 0.89, None)]
    assert decision.placement is None


def test_more_tokens_a_step_are_taken_where_they_give_more() -> None:
    decision, asked = search(node(tokens_help=0.2), split_space(gpus=1))
    assert decision.placement == Placement(gpus=1, memory_fraction=0.89, batched_tokens=8192)
    assert [tokens for _, _, tokens in shapes(asked)] == [None, 8192, 16384]
    assert "1 GPU at 0.89 of its memory, 8192 tokens a step" in decision.reason


def test_fewer_tokens_a_step_come_first_where_the_time_between_tokens_is_the_bound() -> None:
    space = split_space(gpus=1, latency_ms={"tpot_p95": 45.0}).model_copy(
        update={"batched_tokens": StepTokens(default=8192, values=LADDER)}
    )
    _, asked = search(node(), space)
    assert [tokens for _, _, tokens in shapes(asked)] == [None, 2048, 16384]


# --- both --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make_offload_rig, make_split_rig])
def test_the_answer_was_measured_and_keeps_every_bound(make: Callable[[int], Rig]) -> None:
    for seed in range(1000, 1040):
        rig, noise = make(seed), random.Random(seed)
        space = space_of(rig)
        decision, _, history = searched(partial(rig.measure, noise=noise), space, seed % 3 * 8 or None)
        trials = {trial.placement: trial for trial in sort_trials(history, space)}
        if decision.placement is None or decision.batch is None:
            assert all(trial.claim == 0 for trial in trials.values())
            continue
        trial = trials[decision.placement]
        runs = [run for run in trial.runs if run.batch == decision.batch]
        assert len(runs) >= REPEATS
        assert max(run.peak_bytes or 0 for run in runs) <= trial.limits.memory_bytes
        assert doubt(trial.sizes[decision.batch], trial.limits) == ""
        throughput = statistics.median(run.throughput or 0 for run in runs)
        rival = max(trials.values(), key=lambda one: one.claim)
        assert throughput >= rival.claim * (1 - space.limits.tolerance)
        own = trials[rival.placement.model_copy(update={"batched_tokens": None})]
        often = any(size.throughput == rival.claim and size.runs >= REPEATS for size in rival.sure)
        assert often or rival.claim <= own.claim * (1 + space.limits.tolerance), (
            "what it is compared with was measured as often, but for steps that gain next to nothing"
        )


def test_in_an_open_loop_the_fewest_gpus_that_keep_up_are_taken() -> None:
    behind = Saturation(growth=0.4, later=1.0, backlog=31, begun=1.0)
    noise = random.Random(1)

    def measure(placement: Placement, batch: int) -> Run:
        keeps_up = placement.gpus * batch >= 8 and placement.gpus > 1
        return Run(
            batch=batch,
            peak_bytes=GB,
            throughput=256.0 * noise.uniform(0.8, 1.0),
            latency_ms={},
            saturation=behind.model_copy(update={"growth": 0.0 if keeps_up else 0.4}),
        )

    decision, _ = search(
        measure, split_space(weights=8, rate_per_s=8).model_copy(update={"batched_tokens": StepTokens()})
    )
    assert (decision.placement, decision.batch) == (Placement(gpus=2, memory_fraction=0.89), 4)


def test_in_an_open_loop_the_first_placement_that_keeps_up_is_enough() -> None:
    space = offload_space(rate_per_s=4)
    quick = machine(space)
    decision, asked = search(
        lambda at, batch: quick(at, batch).model_copy(update={"throughput": 128.0}), space
    )
    assert (decision.placement, decision.batch) == (Placement(gpu_layers=41), 1)
    assert {ask.placement for ask in asked} == {Placement(gpu_layers=41)}


def test_parameters_below_zero_are_left_out() -> None:
    rows = [[1.0, float(x)] for x in range(5)]
    assert fit_nonnegative(rows, [1.0 + 2 * x for x in range(5)]) == pytest.approx([1, 2])
    assert fit_nonnegative(rows, [5.0 - x for x in range(5)]) == pytest.approx([3, 0])
    assert fit_nonnegative([[1.0, 0.0]], [-1.0]) == [0, 0]
