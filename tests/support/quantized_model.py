"""A model in safetensors that comes quantized, written here: int8 by row, as compressed-tensors stores it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from plain_safetensors import Plain, read_plain, write_plain
from random_model import read_floats

INT8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
}
FP8_BLOCK = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}
"""DeepSeek-V3's section."""


def write_int8_model(model: Path, out: Path) -> Path:
    """The model in `model` with all linear layers but the output layer in 8 bits; returns `out`."""
    out.mkdir(parents=True)
    for path in model.iterdir():
        if path.is_file() and not path.name.endswith((".safetensors", ".index.json")):
            shutil.copyfile(path, out / path.name)
    tensors: dict[str, Plain] = {}
    for file in sorted(model.glob("*.safetensors")):
        tensors |= read_plain(file)
        for name, values in read_floats(file).items():
            if values.ndim == 2 and "_proj" in name:
                tensors |= _by_row(name, values)
    write_plain(out / "model.safetensors", tensors, {"format": "pt"})
    return say_quantized(out, INT8)


def say_quantized(model: Path, section: dict[str, Any] | None, **others: Any) -> Path:
    """Have the model's `config.json` say that it is quantized so, whatever its weights are."""
    config = json.loads((model / "config.json").read_text()) | others
    if section is not None:
        config["quantization_config"] = section
    (model / "config.json").write_text(json.dumps(config))
    return model


def _by_row(name: str, values: np.ndarray[Any, Any]) -> dict[str, Plain]:
    scale = np.maximum(np.abs(values).max(axis=1, keepdims=True), 1e-8) / 127
    # Rounded as it is stored, so that the numbers fit the scale that is read.
    stored = ((scale.astype(np.float32).view(np.uint32) + 0x8000) >> 16).astype(np.uint16)
    read = (stored.astype(np.uint32) << 16).view(np.float32)
    numbers = np.clip(np.rint(values / read), -128, 127).astype(np.int8)
    return {
        name: ("I8", numbers.shape, numbers.tobytes()),
        f"{name}_scale": ("BF16", stored.shape, stored.tobytes()),
    }
