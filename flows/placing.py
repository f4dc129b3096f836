"""What an engine may be told on this host: a model's footprint by its staged files, the memory of GPUs and host."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import psutil

from blocks.host.nvml import gpus_in_use
from tasks.batching.models import Devices, Footprint, Limits, Requests, Space, StepTokens
from tasks.batching.placement.plan import predict_placement
from tasks.batching.placement.words import configure
from tasks.core.model_shape import read_model_shape
from tasks.core.serving import ServingConfig
from tasks.core.spec import CandidateFormat, Hardware
from tasks.engines.card import EngineCard
from tasks.quantization.folder_sizes import folder_bytes, unpacked_bytes
from tasks.quantization.sizes import weights_by_place
from tasks.quantization.source import read_source

ALL_LAYERS = 999
"""More than any model has: for GPUs that do not tell how much memory they have, so that nothing can be predicted."""

_MEMORY_STEP = 1 << 28
"""The host's memory is taken in steps: the kernel's own share changes a little with every start."""


def gpu_sizes(hardware: Hardware) -> tuple[int, ...]:
    """Memory of the GPUs in use, bytes, the largest first; those that do not tell it left out."""
    return tuple(one.gpu.memory_bytes for one in gpus_in_use(hardware.gpus) if one.gpu.memory_bytes)


def host_bytes(hardware: Hardware) -> int:
    """Memory of the host, or the limit that the spec sets."""
    return hardware.memory or psutil.virtual_memory().total // _MEMORY_STEP * _MEMORY_STEP


def footprint_of(model_dir: Path, form: CandidateFormat, card: EngineCard, context: int) -> Footprint:
    """What the model in this format will take, predicted. Raises `ModelError`."""
    shape = read_model_shape(model_dir)
    source = read_source(model_dir, shape)
    if card.loads_gguf:
        layers, output = weights_by_place(source, shape, form)
    else:
        layers, output = unpacked_bytes(source) if card.unpacks_weights else folder_bytes(source, form), 0
    return Footprint(
        layers=shape.layers,
        layer_bytes=layers // shape.layers,
        output_bytes=output,
        kv_bytes=context * shape.kv_bytes_per_token // shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
    )


def find_space(
    card: EngineCard,
    hardware: Hardware,
    footprint: Footprint,
    limits: Limits,
    memory_fraction: float,
    requests: Requests | None = None,
) -> Space | None:
    """What an engine may be told beside its batch size; None where nothing is worth telling."""
    gpus = gpu_sizes(hardware)
    knobs: tuple[Literal["offload", "tensor_parallel"], ...] = ("offload", "tensor_parallel")
    knob = next((name for name in knobs if gpus and card.find_knob(name)), None)
    batched, micro = (_step_tokens(card, name, gpus) for name in ("batched_tokens", "micro_batch_tokens"))
    if knob is None and not batched.values and not micro.values:
        return None
    return Space(
        knob=knob,
        footprint=footprint,
        devices=Devices(gpu_bytes=gpus, host_bytes=host_bytes(hardware)),
        limits=limits,
        memory_fraction=memory_fraction,
        batched_tokens=batched,
        micro_batch_tokens=micro,
        requests=requests,
        by_slot=card.fills_steps_by_slot,
    )


def _step_tokens(card: EngineCard, name: str, gpus: Sequence[int]) -> StepTokens:
    found = card.find_knob(name)
    return (
        StepTokens(default=found.default_on(min(gpus, default=0)), values=found.values)
        if found
        else StepTokens()
    )


def predicted(config: ServingConfig, space: Space) -> ServingConfig:
    """The configuration with the placement that is predicted to fit."""
    return configure(config, predict_placement(space, config.batch), space)
