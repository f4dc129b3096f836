"""A placement in words, in an engine's configuration, and with its figures. Pure."""

from __future__ import annotations

from tasks.batching.models import Decision, Placement, PlacementFigures, Space
from tasks.batching.placement.memory import all_layers
from tasks.batching.placement.trials import Trial
from tasks.core.serving import ServingConfig, step_words

_STEPS = {"batched_tokens", "micro_batch_tokens"}
_KNOBS = {
    None: _STEPS,
    "offload": {"gpu_layers"} | _STEPS,
    "tensor_parallel": {"gpus", "memory_fraction"} | _STEPS,
}


def describe(placement: Placement, space: Space) -> str:
    """A placement in words."""
    steps = step_words(placement.batched_tokens, placement.micro_batch_tokens)
    if space.knob is None:
        return ", ".join(steps) or "the engine's own steps"
    return ", ".join([_place_words(placement, space), *steps])


def _place_words(placement: Placement, space: Space) -> str:
    if space.knob == "offload":
        every = all_layers(space.footprint)
        which = f"all {every}" if placement.gpu_layers >= every else f"{placement.gpu_layers} of {every}"
        return f"{which} layers on the GPUs"
    gpus, whose = ("1 GPU", "its") if placement.gpus == 1 else (f"{placement.gpus} GPUs", "their")
    return f"{gpus} at {placement.memory_fraction:g} of {whose} memory"


def configure(config: ServingConfig, placement: Placement, space: Space) -> ServingConfig:
    """The configuration that serves the model so placed."""
    return config.model_copy(update=placement.model_dump(include=_KNOBS[space.knob]))


def sum_up(trial: Trial, space: Space, *, chosen: bool) -> PlacementFigures:
    """What was measured of a placement, and what became of it."""
    best = max(trial.sure, key=lambda size: size.throughput, default=None)
    if best is not None:
        why = ""
    elif isinstance(trial.step, Decision):
        why = trial.step.reason
    else:
        smallest = trial.sizes[min(trial.sizes)]
        why = f"batch {smallest.batch}: {smallest.why}"
    return PlacementFigures(
        name=describe(trial.placement, space),
        placement=trial.placement,
        sizes=tuple(trial.sizes.values()),
        chosen=chosen,
        best=best,
        why=why,
    )
