"""What the tuning benchmark counts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from benchmarks.rigs import LATENCY, Rig, make_rig
from benchmarks.tuning import can_be_shown, score


def rig(margin: float, spread: float = 0.02) -> Rig:
    """One sequence, whose latency is that share below its bound."""
    made = make_rig(1)
    limits = made.limits.model_copy(
        update={"max_batch": 1, "memory_bytes": 10**12, "latency_ms": {LATENCY: 100.0}}
    )
    latency = 100 * (1 - margin)
    return replace(made, limits=limits, latency_ms=latency, latency_each_ms=0.0, spread=spread)


@pytest.mark.parametrize(("margin", "shown"), [(0.02, True), (0.005, False), (-0.01, False)])
def test_what_comes_nearer_to_a_bound_than_runs_can_tell_cannot_be_shown(margin: float, shown: bool) -> None:
    """Fifteen runs that scatter by 2 % tell 0.9 %."""
    assert can_be_shown(rig(margin)) == shown


def test_no_answer_is_none_that_fits() -> None:
    rigs = [rig(0.02), rig(0.005), rig(-0.01)]
    never = score(lambda rig, measure: None, rigs)
    assert (
        never["keeps_every_bound"],
        never["fits_where_one_fits"],
        never["fits_where_it_can_be_shown"],
    ) == (1, 0, 0)
    once = score(lambda one, measure: 1 if one is rigs[0] else None, rigs)
    assert math.isclose(once["fits_where_one_fits"], 0.5)
    assert once["fits_where_it_can_be_shown"] == 1
