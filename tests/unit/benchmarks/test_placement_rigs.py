"""The machines that the placement search is scored on are what they say."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from benchmarks.placement_rigs import TPOT, BaseRig, make_offload_rig, make_split_rig
from benchmarks.step_rigs import make_step_rig
from tasks.batching.models import Placement

SEEDS = range(200)


@pytest.mark.parametrize("make", [make_offload_rig, make_split_rig, make_step_rig])
def test_a_seed_gives_one_rig(make: Callable[[int], BaseRig]) -> None:
    assert make(7) == make(7) != make(8)


def test_models_that_fit_whole_in_part_and_not_at_all_are_among_them() -> None:
    rigs = [make_offload_rig(seed) for seed in SEEDS]
    whole = [rig.fits(Placement(gpu_layers=rig.footprint.layers + 1), 1) for rig in rigs]
    parts = [any(rig.fits(placement, 1) for placement in rig.placements()) for rig in rigs]
    assert 0.2 < sum(whole) / len(rigs) < 0.6
    assert 0.1 < (sum(parts) - sum(whole)) / len(rigs) < 0.6
    assert not all(parts)


def test_a_layer_on_the_host_is_slower_and_takes_its_cache_along() -> None:
    for rig in (rig for rig in map(make_offload_rig, SEEDS) if rig.footprint.layers == 32):
        more, fewer = (rig.truth(Placement(gpu_layers=layers), 2) for layers in (20, 19))
        if more.oom or fewer.oom:
            continue
        assert (fewer.throughput or 0) < (more.throughput or 0)
        saved = (more.peak_bytes or 0) - (fewer.peak_bytes or 0)
        assert saved == pytest.approx(rig.layer_bytes[13] + 2 * rig.footprint.kv_bytes, abs=2)


def test_over_gpus_heads_are_dealt_out_and_the_pool_is_taken_at_the_start() -> None:
    rigs = [rig for rig in map(make_split_rig, SEEDS) if any(rig.fits(at, 2) for at in rig.placements())]
    assert {len(rig.devices.gpu_bytes) for rig in rigs} == {1, 2, 4, 8}
    for rig in rigs:
        assert all(rig.footprint.heads % placement.gpus == 0 for placement in rig.placements())
        placement = next(at for at in rig.placements() if rig.fits(at, 2))
        assert rig.truth(placement, 1).peak_bytes == rig.truth(placement, 2).peak_bytes


def test_what_is_measured_scatters_about_the_truth() -> None:
    rig = next(
        rig
        for rig in map(make_offload_rig, SEEDS)
        if rig.fits(Placement(gpu_layers=9), 1) and rig.memory_spread > 0.004
    )
    noise = random.Random(1)
    true = rig.truth(Placement(gpu_layers=9), 1)
    runs = [rig.measure(Placement(gpu_layers=9), 1, noise) for _ in range(400)]
    mean = sum(run.throughput or 0 for run in runs) / len(runs)
    assert abs(mean / (true.throughput or 1) - 1) < 0.02
    assert min(run.peak_bytes or 0 for run in runs) >= (true.peak_bytes or 0)


def test_shorter_steps_shorten_pauses_until_the_last_slot_gets_none() -> None:
    rig = next(rig for rig in map(make_step_rig, SEEDS) if rig.requests.prompt_tokens == 512)
    own, short = (rig.truth(Placement(batched_tokens=tokens), 3) for tokens in (None, 256))
    assert short.latency_ms[TPOT] < own.latency_ms[TPOT]
    assert (short.throughput or 0) < (own.throughput or 0)
    hung = rig.truth(Placement(batched_tokens=64), 128)
    assert not hung.answered


def test_fewer_tokens_at_once_take_less_memory_and_more_time() -> None:
    rig = next(rig for rig in map(make_step_rig, SEEDS) if rig.token_bytes)
    few, many = (rig.truth(Placement(micro_batch_tokens=tokens), 1) for tokens in (64, 2048))
    assert (few.peak_bytes or 0) < (many.peak_bytes or 0)
    assert (few.throughput or 0) < (many.throughput or 0)
