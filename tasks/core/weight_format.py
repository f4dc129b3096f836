"""How the weights of a model that comes quantized are stored, by what its own files say. Pure.

The tool that quantized a model says so in the model's `config.json`, or in a file beside it. Its values come from
strangers: one of another kind than expected is read as one that is not known.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from tasks.core.errors import ModelError
from tasks.core.frozen import Frozen

HF_QUANT_FILE = "hf_quant_config.json"
"""Where ModelOpt writes what it did. Earlier versions of it write nothing to `config.json`."""

CONFIG_FILE = "config.json"
_KEYS = ("quantization_config", "compression_config")
_NESTED = ("text_config", "llm_config", "language_config")
_LONGEST = 40


class WeightFormat(Frozen):
    """A method of quantization by its common name, such as `fp8`, and the type of the weights as the compatibility
    tables call it; None if they have none for it. `detail` says more, for people; `found_in` is the file."""

    method: str
    weight_type: str | None
    detail: str = ""
    found_in: str = CONFIG_FILE

    def describe(self) -> str:
        """Method, type and detail in a few words."""
        named = (self.method, f"{self.method}-block", None)
        kind = "" if self.weight_type in named else str(self.weight_type)
        return ", ".join(filter(None, (self.method, kind, self.detail)))


def read_weight_format(
    config: Mapping[str, Any], beside: Mapping[str, Any] | None = None
) -> WeightFormat | None:
    """How the weights are quantized by `config.json`, or by the content of `hf_quant_config.json` beside it.

    None for a model that is not quantized.
    """
    stored, mlx = _stored(config), _mapping(config.get("quantization")) or {}
    if stored is not None and not ("bits" in mlx and "quant_method" not in stored):
        return _format_of(stored, CONFIG_FILE)
    inner = _mapping(beside.get("quantization")) if beside else None
    if inner and inner.get("quant_algo"):  # without it, keys and values alone are quantized
        return _format_of({"quant_method": "modelopt", **inner}, HF_QUANT_FILE)
    if "bits" in mlx:
        return WeightFormat(method="mlx", weight_type=None, detail=_bits(mlx))
    return None


def parse_weight_format(config: Mapping[str, Any], beside: bytes | None, where: str) -> WeightFormat | None:
    """The same, with the text of the file beside `config.json`, found at `where`. Raises `ModelError`."""
    if beside is None:
        return read_weight_format(config)
    try:
        found = json.loads(beside)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ModelError(f"{where} is not a JSON object", fix="copy or download the model again")
    return read_weight_format(config, found)


def _stored(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The section about quantization: of the model, or of the text model in a multimodal one."""
    for place in (config, *(_mapping(config.get(name)) or {} for name in _NESTED)):
        for key in _KEYS:
            if found := _mapping(place.get(key)):
                return found
    return None


def _format_of(stored: Mapping[str, Any], found_in: str) -> WeightFormat:
    method = _method(stored)
    kind, detail = _READERS.get(method, _unknown)(stored)
    return WeightFormat(method=method, weight_type=kind, detail=detail, found_in=found_in)


def _method(stored: Mapping[str, Any]) -> str:
    """The method by its common name. ModelOpt's own section may lack it, and name the producer alone."""
    producer = _mapping(stored.get("producer")) or {}
    if producer.get("name") == "modelopt":
        return "modelopt"
    named = stored.get("quant_method")
    if not isinstance(named, str) or not named.isprintable() or not named:
        if stored.get("load_in_4bit") or stored.get("load_in_8bit"):
            return "bitsandbytes"
        return "modelopt" if "quant_algo" in stored else "(not named)"
    return _ALIASES.get(named, named[:_LONGEST])


_ALIASES = {
    "awq_marlin": "awq",
    "gptq_marlin": "gptq",
    "modelopt_fp4": "modelopt",
    "modelopt_mixed": "modelopt",
    "compressed_tensors": "compressed-tensors",
    "auto_round": "auto-round",
    "intel/auto-round": "auto-round",
}

_Read = tuple[str | None, str]
"""The type by the name of the compatibility tables, and what else there is to say."""


def _fp8(stored: Mapping[str, Any]) -> _Read:
    scheme = stored.get("activation_scheme")
    activations = f"{scheme} activations" if scheme in ("dynamic", "static") else ""
    block = stored.get("weight_block_size")
    if not block:
        return "fp8", activations
    sizes = "x".join(map(str, block)) if isinstance(block, list) and len(block) == 2 else "?"
    return "fp8-block", ", ".join(filter(None, (f"blocks of {sizes[:_LONGEST]}", activations)))


def _four_bits(name: str) -> Callable[[Mapping[str, Any]], _Read]:
    """The tables know these methods in 4 bits."""
    return lambda stored: (name if stored.get("bits", stored.get("w_bit")) == 4 else None, _bits(stored))


def _bitsandbytes(stored: Mapping[str, Any]) -> _Read:
    if not stored.get("load_in_4bit"):
        return "bnb-int8", ""
    kind = stored.get("bnb_4bit_quant_type")
    return "bnb-nf4", "fp4" if kind == "fp4" else ""


_COMPRESSED = {
    "float-quantized": "fp8",
    "int-quantized": "int8",
    "mxfp4-pack-quantized": "mxfp4",
    "nvfp4-pack-quantized": "nvfp4",
    "pack-quantized": "w4a16",
}
"""Formats of compressed-tensors (llmcompressor), each with the only type that it is known for."""
_STORED_BITS = {"int8": 8, "w4a16": 4}


def _compressed_tensors(stored: Mapping[str, Any]) -> _Read:
    """By the format of each group, and the bits and blocks of its weights."""
    groups = [
        group for one in (_mapping(stored.get("config_groups")) or {}).values() if (group := _mapping(one))
    ]
    formats = {str(group.get("format") or stored.get("format")) for group in groups} or {
        str(stored.get("format"))
    }
    kinds = {_compressed_kind(str(group.get("format") or stored.get("format")), group) for group in groups}
    kinds = kinds or {_COMPRESSED.get(one) for one in formats}
    kind = kinds.pop() if len(kinds) == 1 else None
    return kind, "" if kind else ", ".join(sorted(formats))[:_LONGEST]


def _compressed_kind(form: str, group: Mapping[str, Any]) -> str | None:
    weights = _mapping(group.get("weights")) or {}
    kind = _COMPRESSED.get(form)
    if form == "naive-quantized" and weights.get("num_bits") == 8:
        kind = {"float": "fp8", "int": "int8"}.get(str(weights.get("type")))
    if kind in _STORED_BITS and weights.get("num_bits", _STORED_BITS[kind]) != _STORED_BITS[kind]:
        return None
    if kind == "fp8" and weights.get("strategy") == "block":
        return "fp8-block"
    # Integers with their activations left in 16 bits are another type, which the tables do not have.
    if kind == "int8" and not group.get("input_activations"):
        return None
    return kind


_MODELOPT = {"FP8": "fp8", "NVFP4": "nvfp4", "MXFP4": "mxfp4", "FP8_PB_WO": "fp8-block"}


def _modelopt(stored: Mapping[str, Any]) -> _Read:
    inner = _mapping(stored.get("quantization")) or stored
    named = inner.get("quant_algo")
    algorithm = named[:_LONGEST] if isinstance(named, str) and named.isprintable() else ""
    return _MODELOPT.get(algorithm.upper()), "" if algorithm.upper() in _MODELOPT else algorithm


def _unknown(stored: Mapping[str, Any]) -> _Read:
    return None, _bits(stored)


_READERS: Mapping[str, Callable[[Mapping[str, Any]], _Read]] = {
    "awq": _four_bits("awq"),
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed_tensors,
    "fbgemm_fp8": lambda _: ("fp8", ""),
    "fp8": _fp8,
    "gptq": _four_bits("gptq"),
    "modelopt": _modelopt,
    "mxfp4": lambda _: ("mxfp4", ""),
    "nvfp4": lambda _: ("nvfp4", ""),
}
"""What each method's section says. Any other method (aqlm, hqq, torchao …) is one that the engine decides about."""


def _bits(stored: Mapping[str, Any]) -> str:
    bits = stored.get("bits", stored.get("w_bit"))
    return f"{bits} bits" if type(bits) is int and 0 < bits <= 64 else ""


def _mapping(value: Any) -> Mapping[str, Any] | None:
    return value if isinstance(value, dict) and value else None
