"""What a model's `config.json` says about its architecture: the sizes that memory and conversion depend on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from tasks.core.errors import ModelError
from tasks.core.frozen import Frozen
from tasks.core.given_files import read_given
from tasks.core.model_task import Task

CONVERTIBLE = {"LlamaForCausalLM": "llama", "Qwen3ForCausalLM": "qwen3"}
ENCODERS = {"BertModel": "bert", "BertForSequenceClassification": "bert"}
"""The same of models for embeddings and rankings."""

"""Architectures that can be converted to GGUF, by the name in `config.json`, with their family."""

FAMILIES = {
    **CONVERTIBLE,
    "DeepseekV2ForCausalLM": "deepseek-v2",
    "DeepseekV3ForCausalLM": "deepseek-v3",
    "Gemma2ForCausalLM": "gemma",
    "Gemma3ForCausalLM": "gemma",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3MoeForCausalLM": "qwen3",
}
"""Architectures whose sizes can be read. Engines that load folders serve those that cannot be converted."""


_LIMIT_BYTES = 10_000_000
_LARGEST = 2**40
Size = Annotated[int, Field(gt=0, le=2 * _LARGEST)]


class ModelShape(Frozen):
    """Sizes of a decoder-only transformer.

    `latent` is the width of what multi-head latent attention keeps per token and layer instead of keys and values;
    `full_layers` how many layers keep keys and values of the whole context, if the others only look at a window.
    """

    architecture: str
    family: str
    layers: Size
    hidden: Size
    heads: Size
    kv_heads: Size
    head_dim: Size
    vocabulary: Size
    max_context: Size
    latent: Size | None = None
    full_layers: Size | None = None

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values, which have 16 bits each."""
        return (self.full_layers or self.layers) * (self.latent or 2 * self.kv_heads * self.head_dim) * 2


def read_model_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of the model in `folder`. Raises `ModelError`."""
    path = folder / "config.json"
    fix = "give a folder in the Hugging Face layout"
    if not os.path.lexists(path):
        raise ModelError(f"{folder} contains no config.json", fix=fix)
    text = read_given(
        path, "configuration", limit_bytes=_LIMIT_BYTES, fix=fix, missing=ModelError, wrong=ModelError
    )
    return _parse(text, str(path))


def read_model_shape(folder: Path) -> ModelShape:
    """The shape of the model in `folder`. Raises `ModelError` that names what is missing."""
    return shape_of(read_model_config(folder), f"{folder}/config.json")


def parse_model_shape(text: bytes, path: str) -> ModelShape:
    """The shape that a `config.json` found at `path` describes. Raises `ModelError`."""
    return shape_of(_parse(text, path), path)


def _parse(text: bytes, path: str) -> dict[str, Any]:
    try:
        config: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a JSON object")
    return config


def shape_of(config: Mapping[str, Any], path: str) -> ModelShape:
    """The shape that a configuration, found at `path`, describes. Raises `ModelError`."""
    architecture = _architecture(config)
    family = FAMILIES.get(architecture) or ENCODERS.get(architecture)
    if family is None:
        raise ModelError(
            f"{path}: Slipway does not know the architecture {architecture}",
            fix=f"use one of {', '.join(FAMILIES)}",
        )
    try:
        heads = _size(config, "num_attention_heads")
        hidden = _size(config, "hidden_size")
        return ModelShape(
            architecture=architecture,
            family=family,
            layers=_size(config, "num_hidden_layers"),
            hidden=hidden,
            heads=heads,
            kv_heads=_size(config, "num_key_value_heads", heads),
            head_dim=_head_dim(config, hidden // heads),
            vocabulary=_size(config, "vocab_size"),
            max_context=_size(config, "max_position_embeddings"),
            latent=_latent(config),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: a size is missing or wrong: {' '.join(str(error).split())}") from error


def check_convertible(shape: ModelShape, path: str, task: Task | None = None) -> None:
    """Raise `ModelError` for a model that cannot be converted to GGUF, to be served for that task if it is known."""
    if shape.architecture in ENCODERS and task is not Task.GENERATE:
        return
    if task not in (None, Task.GENERATE):
        raise ModelError(
            f"{path}: Slipway cannot convert the architecture {shape.architecture} to GGUF for {task}",
            fix=f"use one of {', '.join(ENCODERS)}, the model's GGUF file, or engine: vllm",
        )
    if shape.architecture not in CONVERTIBLE:
        raise ModelError(
            f"{path}: Slipway cannot convert the architecture {shape.architecture} to GGUF",
            fix=f"use one of {', '.join(CONVERTIBLE)}, or an engine that loads folders: engine: vllm or transformers",
        )


def _architecture(config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else None
    return first[:80] if isinstance(first, str) else "(none)"


def _size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A size from the file, or the default. Raises `KeyError` or `ValueError`."""
    value = config.get(key, default)
    if value is None:
        if default is None:
            raise KeyError(key)
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LARGEST:
        raise ValueError(f"{key} is not a size")
    return value


def _head_dim(config: Mapping[str, Any], default: int) -> int:
    if "qk_rope_head_dim" in config and "qk_nope_head_dim" in config:
        return _size(config, "qk_nope_head_dim") + _size(config, "qk_rope_head_dim")
    return _size(config, "head_dim", default)


def _latent(config: Mapping[str, Any]) -> int | None:
    if config.get("kv_lora_rank") is None:
        return None
    return _size(config, "kv_lora_rank") + _size(config, "qk_rope_head_dim")
