"""What a model may be placed in on this host: its footprint by the staged files, the memory of GPUs and host."""

from __future__ import annotations

from pathlib import Path

import psutil

from blocks.nvml import gpus_in_use
from tasks.batching.models import Devices, Footprint, Limits, Space
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
    card: EngineCard, hardware: Hardware, footprint: Footprint, limits: Limits, memory_fraction: float
) -> Space | None:
    """What an engine may be told about GPUs; None where there are none in use, or it cannot be told."""
    gpus = gpu_sizes(hardware)
    devices = Devices(gpu_bytes=gpus, host_bytes=host_bytes(hardware)) if gpus else None
    if devices is None:
        return None
    if card.find_knob("offload"):
        return Space(
            knob="offload",
            footprint=footprint,
            devices=devices,
            limits=limits,
            memory_fraction=memory_fraction,
        )
    if card.find_knob("tensor_parallel") is None:
        return None
    tokens = card.find_knob("batched_tokens")
    return Space(
        knob="tensor_parallel",
        footprint=footprint,
        devices=devices,
        limits=limits,
        memory_fraction=memory_fraction,
        default_tokens=tokens.default_on(min(gpus)) if tokens else None,
        ladder=tokens.values if tokens else (),
    )


def predicted(config: ServingConfig, space: Space) -> ServingConfig:
    """The configuration with the placement that is predicted to fit."""
    return configure(config, predict_placement(space, config.batch), space)
