"""Sizes in a `config.json`, under whatever names the model's makers gave them. Pure.

Everything that depends on a name stands in a table here: adding a spelling is adding a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LARGEST = 2**40

NESTS = ("text_config", "llm_config", "thinker_config")
"""Keys under which a wrapper, such as a model that also sees, keeps its language model."""

SPELLINGS: dict[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "num_transformer_layers"),
    "hidden": ("hidden_size", "n_embd", "n_embed", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "multi_query_group_num", "attn_config.kv_n_heads"),
    "head_dim": ("head_dim", "attention_head_dim"),
    "vocabulary": ("vocab_size",),
    "context": (
        "model_max_length", "max_position_embeddings", "n_positions", "max_seq_len", "seq_length",
        "max_context_length",
    ),
    "window": ("sliding_window", "attention_window_size"),
}  # fmt: skip
"""The names of a size, the one that counts first: a dot leads into a nested mapping."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072,
    },
    "llama": {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32},
}  # fmt: skip
"""What a model type's class takes for keys that published files leave out (transformers 5.24)."""

STRETCHES = {"dynamic", "linear", "yarn"}
"""Kinds of rotary scaling that lengthen the context; the others say how, but not that (vLLM, `config/model.py`)."""

STRETCHED_ALREADY = ("gemma3",)
"""Model types whose `max_position_embeddings` counts the factor already (vLLM, `config/model.py`)."""


class NotASizeError(ValueError):
    """A key has a value that cannot be a size."""


def language_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that describes the language model, with what its class takes for missing keys."""
    part = config
    while (inner := next((part[key] for key in NESTS if part.get(key)), None)) and isinstance(inner, dict):
        part = inner
    return {**DEFAULTS.get(str(part.get("model_type")), {}), **part}


def size_of(part: Mapping[str, Any], name: str) -> int | None:
    """The size of that common name; None if no key has it. Raises `NotASizeError`."""
    for key in SPELLINGS[name]:
        value = _at(part, key)
        if value is None or (isinstance(value, list) and key == "num_kv_heads"):
            continue  # one of each layer, which is read there
        return checked(value, key)
    return None


def checked(value: object, key: str) -> int:
    """A value that must be a size. Raises `NotASizeError`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= LARGEST:
        raise NotASizeError(f"{key} is not a size")
    return value


def longest_context(part: Mapping[str, Any]) -> int | None:
    """Tokens that the model was made for, with the stretching that its configuration sets; None if it does not say.

    Raises `NotASizeError`.
    """
    positions = size_of(part, "context")
    scaling = _scaling(part)
    kind = scaling.get("rope_type") or scaling.get("type")
    factor = _factor(scaling.get("factor"))
    if positions is None or factor is None or kind not in STRETCHES:
        return positions
    if str(part.get("model_type")).startswith(STRETCHED_ALREADY):
        return positions
    original = scaling.get("original_max_position_embeddings")
    trained = positions if original is None else checked(original, "original_max_position_embeddings")
    return max(positions, min(int(trained * factor), LARGEST))


def _scaling(part: Mapping[str, Any]) -> Mapping[str, Any]:
    found = part.get("rope_scaling") or part.get("rope_parameters")
    return found if isinstance(found, dict) else {}


def _factor(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 1 <= value <= LARGEST else None


def _at(part: Mapping[str, Any], key: str) -> object:
    outer, _, inner = key.rpartition(".")
    if not outer:
        return part.get(key)
    nested = part.get(outer)
    return nested.get(inner) if isinstance(nested, dict) else None
