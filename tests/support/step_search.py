"""Runs the search for steps on machines that are computed."""

from __future__ import annotations

from collections.abc import Callable

from tasks.batching.models import Run, SteppedAsk, SteppedDecision, SteppedRun, Steps, StepSpace
from tasks.batching.steps.plan import next_stepped

Measure = Callable[[Steps, int], Run]
_MOST_STEPS = 200


def search(
    measure: Measure, space: StepSpace, prior: int | None = None
) -> tuple[SteppedDecision, list[SteppedAsk]]:
    """What was decided, and what was asked for on the way. Raises `AssertionError` where the search does not end."""
    history: list[SteppedRun] = []
    asked: list[SteppedAsk] = []
    for _ in range(_MOST_STEPS):
        step = next_stepped(history, space, prior)
        if isinstance(step, SteppedDecision):
            return step, asked
        asked.append(step)
        for _ in range(step.runs):
            history.append(SteppedRun(steps=step.steps, run=measure(step.steps, step.batch)))
            if not history[-1].run.answered:
                break
    raise AssertionError("the search does not end")
