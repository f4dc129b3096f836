"""What a model's `config.json` says of its architecture: the sizes that memory and conversion depend on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tasks.core.errors import ModelError

FAMILIES = {"LlamaForCausalLM": "llama", "Qwen3ForCausalLM": "qwen3"}
"""Architectures that can be converted and served today, by the name in `config.json`."""


class ModelShape(BaseModel):
    """Sizes of a decoder-only transformer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    layers: int = Field(gt=0)
    hidden: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    vocabulary: int = Field(gt=0)
    max_context: int = Field(gt=0)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values, which are kept in 16 bits."""
        return self.layers * 2 * self.kv_heads * self.head_dim * 2


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
    architectures = config.get("architectures") or ["(none)"]
    family = FAMILIES.get(architectures[0])
    if family is None:
        raise ModelError(
            f"{path}: the architecture {architectures[0]} is not one that Slipway can convert",
            fix=f"use one of {', '.join(FAMILIES)}",
        )
    try:
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        return ModelShape(
            family=family,
            layers=config["num_hidden_layers"],
            hidden=hidden,
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            vocabulary=config["vocab_size"],
            max_context=config["max_position_embeddings"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: a size is missing or wrong: {' '.join(str(error).split())}") from error
