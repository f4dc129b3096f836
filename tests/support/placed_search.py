"""Runs the search for a placement on machines that are computed."""

from __future__ import annotations

from collections.abc import Callable

from tasks.batching.models import PlacedAsk, PlacedDecision, PlacedRun, Placement, Run, Space
from tasks.batching.placement.plan import next_placed_step

Measure = Callable[[Placement, int], Run]
_MOST_STEPS = 200


def search(
    measure: Measure, space: Space, prior: int | None = None
) -> tuple[PlacedDecision, list[PlacedAsk]]:
    """What was decided, and what was asked for on the way."""
    decision, asked, _ = searched(measure, space, prior)
    return decision, asked


def searched(
    measure: Measure, space: Space, prior: int | None = None
) -> tuple[PlacedDecision, list[PlacedAsk], list[PlacedRun]]:
    """The same, and all runs. Raises `AssertionError` where the search does not end."""
    history: list[PlacedRun] = []
    asked: list[PlacedAsk] = []
    for _ in range(_MOST_STEPS):
        step = next_placed_step(history, space, prior)
        if isinstance(step, PlacedDecision):
            return step, asked, history
        asked.append(step)
        for _ in range(step.runs):
            history.append(PlacedRun(placement=step.placement, run=measure(step.placement, step.batch)))
            if not history[-1].run.answered:
                break
    raise AssertionError("the search does not end")
