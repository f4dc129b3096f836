"""Steps in words, and with their figures. Pure."""

from __future__ import annotations

from tasks.batching.models import Decision, StepFigures, Steps
from tasks.batching.steps.trials import Trial
from tasks.core.serving import step_words


def describe(steps: Steps) -> str:
    """The steps in words."""
    return ", ".join(step_words(steps.batched_tokens, steps.micro_batch_tokens)) or "the engine's own steps"


def why_not(trial: Trial) -> str:
    """Why no size is good enough with these steps."""
    if isinstance(trial.step, Decision):
        return trial.step.reason
    smallest = trial.sizes[min(trial.sizes)]
    return f"batch {smallest.batch}: {smallest.why}"


def sum_up(trial: Trial, *, chosen: bool) -> StepFigures:
    """What was measured with these steps, and what became of them."""
    best = max(trial.sure, key=lambda size: size.throughput, default=None)
    return StepFigures(
        name=describe(trial.steps),
        steps=trial.steps,
        sizes=tuple(trial.sizes.values()),
        chosen=chosen,
        best=best,
        why="" if best else why_not(trial),
    )
