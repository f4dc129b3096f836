"""The rigs that the batch search is scored on are what they say."""

from __future__ import annotations

import random

from benchmarks.rigs import LATENCY, SHAPES, make_rig

SEEDS = range(400)


def test_a_seed_gives_one_rig() -> None:
    assert make_rig(7) == make_rig(7) != make_rig(8)


def test_every_kind_of_end_is_among_them() -> None:
    rigs = [make_rig(seed) for seed in SEEDS]
    assert {rig.shape for rig in rigs} == set(SHAPES)
    assert any(not rig.fits(1) for rig in rigs), "where nothing fits"
    assert any(rig.fits(rig.limits.max_batch) for rig in rigs), "where nothing ends the range"
    fitting = [rig for rig in rigs if rig.fits(1)]
    first_out = [
        next(b for b in range(1, 2000) if not rig.fits(b) or b > rig.limits.max_batch) for rig in fitting
    ]
    by_memory = [
        rig.peak_bytes(batch) > rig.limits.memory_bytes for rig, batch in zip(fitting, first_out, strict=True)
    ]
    assert 0.2 < sum(by_memory) / len(rigs) < 0.8


def test_what_is_measured_scatters_about_the_truth() -> None:
    rig = next(rig for rig in map(make_rig, SEEDS) if rig.fits(4) and rig.memory_spread > 0.004)
    noise = random.Random(1)
    runs = [rig.measure(4, noise) for _ in range(400)]
    mean = sum(run.throughput or 0 for run in runs) / len(runs)
    assert abs(mean / rig.throughput(4) - 1) < 0.02
    assert min(run.peak_bytes or 0 for run in runs) >= int(rig.peak_bytes(4))
    assert len({run.latency_ms[LATENCY] for run in runs}) == len(runs)


def test_beyond_the_capacity_memory_is_out() -> None:
    rig = next(rig for rig in map(make_rig, SEEDS) if rig.peak_bytes(1000) > rig.capacity_bytes)
    assert rig.measure(1000, random.Random(1)).oom
