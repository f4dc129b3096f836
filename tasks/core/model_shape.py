"""What a model's `config.json` says of its architecture: the sizes that memory and conversion depend on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tasks.core.errors import ModelError

CONVERTIBLE = {"LlamaForCausalLM": "llama", "Qwen3ForCausalLM": "qwen3"}
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
"""Architectures whose sizes are read as below. What is not converted is served by engines that load folders."""


class ModelShape(BaseModel):
    """Sizes of a decoder-only transformer.

    `latent` is the width of what multi-head latent attention keeps of a token and layer in place of keys and values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: str
    family: str
    layers: int = Field(gt=0)
    hidden: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    vocabulary: int = Field(gt=0)
    max_context: int = Field(gt=0)
    latent: int | None = Field(None, gt=0)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values, which are kept in 16 bits."""
        return self.layers * (self.latent or 2 * self.kv_heads * self.head_dim) * 2


def read_model_shape(folder: Path) -> ModelShape:
    """The shape of the model in `folder`. Raises `ModelError` that names what is missing."""
    path = folder / "config.json"
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(
            f"{folder} holds no config.json", fix="give a folder in the Hugging Face layout"
        ) from None
    return parse_model_shape(text, str(path))


def parse_model_shape(text: bytes, path: str) -> ModelShape:
    """The shape that a `config.json` found at `path` describes. Raises `ModelError`."""
    try:
        config: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds no JSON object")
    architecture = (config.get("architectures") or ["(none)"])[0]
    family = FAMILIES.get(architecture)
    if family is None:
        raise ModelError(
            f"{path}: the architecture {architecture} is not one that Slipway knows",
            fix=f"use one of {', '.join(FAMILIES)}",
        )
    try:
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        return ModelShape(
            architecture=architecture,
            family=family,
            layers=config["num_hidden_layers"],
            hidden=hidden,
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=_head_dim(config) or hidden // heads,
            vocabulary=config["vocab_size"],
            max_context=config["max_position_embeddings"],
            latent=_latent(config),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: a size is missing or wrong: {' '.join(str(error).split())}") from error


def check_convertible(shape: ModelShape, path: str) -> None:
    """Raise `ModelError` for a model that cannot be converted to GGUF."""
    if shape.architecture not in CONVERTIBLE:
        raise ModelError(
            f"{path}: the architecture {shape.architecture} is not one that Slipway can convert to GGUF",
            fix=f"use one of {', '.join(CONVERTIBLE)}, or an engine that loads folders: engine: vllm or transformers",
        )


def _head_dim(config: Mapping[str, Any]) -> int | None:
    if "qk_rope_head_dim" in config and "qk_nope_head_dim" in config:
        return int(config["qk_nope_head_dim"]) + int(config["qk_rope_head_dim"])
    return config.get("head_dim")


def _latent(config: Mapping[str, Any]) -> int | None:
    if config.get("kv_lora_rank") is None:
        return None
    return int(config["kv_lora_rank"]) + int(config["qk_rope_head_dim"])
