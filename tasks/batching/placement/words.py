"""A placement in words, in an engine's configuration, and with its figures. Pure."""

from __future__ import annotations

from tasks.batching.models import Decision, Placement, PlacementFigures, Space
from tasks.batching.placement.memory import all_layers
from tasks.batching.placement.trials import Trial
from tasks.core.serving import ServingConfig

_KNOBS = {"offload": {"gpu_layers"}, "tensor_parallel": {"gpus", "memory_fraction", "batched_tokens"}}


def describe(placement: Placement, space: Space) -> str:
    """A placement in words."""
    if space.knob == "offload":
        every = all_layers(space.footprint)
        if placement.gpu_layers >= every:
            return f"all {every} layers on the GPUs"
        return f"{placement.gpu_layers} of {every} layers on the GPUs"
    gpus, whose = ("1 GPU", "its") if placement.gpus == 1 else (f"{placement.gpus} GPUs", "their")
    steps = f", {placement.batched_tokens} tokens a step" if placement.batched_tokens else ""
    return f"{gpus} at {placement.memory_fraction:g} of {whose} memory{steps}"


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
