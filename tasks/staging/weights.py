"""How the model of a source comes quantized, read before anything is copied. Pure, but for the source read."""

from __future__ import annotations

from tasks.core.model_shape import parse_model_config
from tasks.core.weight_format import HF_QUANT_FILE, WeightFormat, parse_weight_format
from tasks.staging.plan import CONFIG_FILE
from tasks.staging.source import Pinned


def weight_format_of(pinned: Pinned) -> WeightFormat | None:
    """The format; None for a model that is not quantized, or without `config.json`. Raises `ModelError`."""
    names = {file.path for file in pinned.files}
    if CONFIG_FILE not in names:
        return None
    name = pinned.source.name
    config = parse_model_config(pinned.read_whole(CONFIG_FILE), f"{name}/{CONFIG_FILE}")
    beside = pinned.read_whole(HF_QUANT_FILE) if HF_QUANT_FILE in names else None
    return parse_weight_format(config, beside, f"{name}/{HF_QUANT_FILE}")
