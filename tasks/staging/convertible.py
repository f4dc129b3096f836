"""Whether a model can be converted to GGUF, by its headers and configuration, before it is copied. Pure.

The rules are those of `tasks/quantization/worker/make_gguf.py`, which runs in the engine's environment; a test holds
them against each other. Values that are not finite are seen only when they are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from tasks.core.errors import ModelError
from tasks.core.model_shape import CONVERTIBLE
from tasks.core.safetensors import Header, Tensor

TOKENIZER_FILE = "tokenizer.json"

_SOURCES = ("BF16", "F16", "F32")
_ROPE_KINDS = ("default", "linear", "yarn", "llama3")
_USUAL_YARN = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = (_LETTERS + r"|\p{N}{1,3}" + _REST, _LETTERS + r"|\p{N}" + _REST)
_BYTE_LEVEL = "use a byte-level BPE tokenizer cut like GPT-2, Llama 3 or Qwen"
_WHOLE = "take the whole model folder"
_AN_ENGINE = "engine: vllm or transformers serves such a folder"


def is_decoder(config: Mapping[str, Any]) -> bool:
    """Whether the rules here are about a model of that configuration: one that generates text."""
    architectures = config.get("architectures")
    return isinstance(architectures, list) and bool(architectures) and architectures[0] in CONVERTIBLE


def check_features(config: Mapping[str, Any], source: str) -> None:
    """Raise `ModelError` for a configuration that llama.cpp would compute otherwise than the model was trained."""
    wrong = {
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "quantization_config": bool(config.get("quantization_config")),
        "use_sliding_window": bool(config.get("use_sliding_window")),
        "partial_rotary_factor": config.get("partial_rotary_factor", 1.0) != 1.0,
    }
    for key, found in wrong.items():
        if found:
            raise _refused(
                source,
                f"config.json: {key} = {json.dumps(config[key])[:80]} cannot be converted",
                "use an unquantized Llama or Qwen3",
            )
    rope = _rope(config)
    kind = str(rope.get("rope_type") or rope.get("type") or "default")[:40]
    if kind not in _ROPE_KINDS:
        raise _refused(
            source, f"config.json: rope scaling {kind} cannot be converted", "use linear, yarn or llama3"
        )
    for key, usual in _USUAL_YARN.items() if kind == "yarn" else ():
        if rope.get(key) not in (None, usual):
            raise _refused(
                source,
                f"config.json: rope scaling yarn with {key} = {json.dumps(rope[key])[:40]} cannot be converted",
                f"use a model with {json.dumps(usual)}, or an engine that loads folders",
            )
    if _family(config) != "llama" and (config.get("attention_bias") or config.get("mlp_bias")):
        raise _refused(
            source,
            f"a {_family(config)} model with biases cannot be converted",
            "use a model without biases",
        )


def check_tokenizer(text: bytes | None, config: Mapping[str, Any], source: str) -> None:
    """Raise `ModelError` for a `tokenizer.json` that is missing, or that llama.cpp would cut otherwise."""
    try:
        tokenizer = json.loads(text or b"")
        model, added = tokenizer["model"], tokenizer.get("added_tokens") or []
        kind, normalizer = model.get("type"), (tokenizer.get("normalizer") or {}).get("type")
        if kind != "BPE" or model.get("byte_fallback"):
            raise _refused(source, f"the tokenizer kind {kind} is not a byte-level BPE", _BYTE_LEVEL)
        if normalizer not in (None, "NFC"):
            raise _refused(
                source, f"the tokenizer's normalizer {normalizer} cannot be converted", _BYTE_LEVEL
            )
        _check_cuts(tokenizer.get("pre_tokenizer") or {}, source)
        largest = max((*(model.get("vocab") or {}).values(), *(one["id"] for one in added)), default=0)
        rows = config.get("vocab_size")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise _refused(source, "tokenizer.json is missing or not a tokenizer", _WHOLE) from None
    if isinstance(rows, int) and largest >= rows:
        raise _refused(
            source,
            f"the tokenizer has {largest + 1} tokens, the model {rows}",
            "take tokenizer.json and weights from the same model",
        )


def check_tensors(config: Mapping[str, Any], headers: Iterable[Header], source: str) -> None:
    """Raise `ModelError` for a tensor that is unknown, missing, of another shape or of another type."""
    tensors = [one for header in headers for one in header.tensors]
    if config["num_hidden_layers"] > len(tensors):
        raise _refused(
            source,
            f"config.json says {config['num_hidden_layers']} layers, but there are only {len(tensors)} tensors",
            "take config.json and weights from the same model",
        )
    expected = _expected(config)
    for tensor in tensors:
        _check_tensor(tensor, expected, config, source)
        expected.pop(tensor.name, None)
    if expected:
        raise _refused(source, f"the tensor {next(iter(expected))} is missing", "copy the model again")


def _check_tensor(
    tensor: Tensor, expected: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], source: str
) -> None:
    name = tensor.name
    if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and name not in expected):
        return
    if tensor.dtype not in _SOURCES:
        raise _refused(
            source, f"the tensor {name[:80]} is stored as {tensor.dtype}", f"use one in {', '.join(_SOURCES)}"
        )
    if name not in expected:
        raise _refused(
            source,
            f"the tensor {name[:80]} is not part of a {_family(config)} model",
            f"check `architectures` in config.json; {_AN_ENGINE}",
        )
    if tensor.shape != expected[name]:
        raise _refused(
            source,
            f"the tensor {name} has the shape {tensor.shape}, config.json says {expected[name]}",
            "take config.json and weights from the same model",
        )


def _expected(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shape by name of each tensor that is needed. The sizes were checked with the model's shape."""
    hidden, heads, feed = (
        config["hidden_size"],
        config["num_attention_heads"],
        config.get("intermediate_size", 0),
    )
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    queries, keys, rows = heads * head_dim, kv_heads * head_dim, config["vocab_size"]
    table = {"model.embed_tokens.weight": (rows, hidden), "model.norm.weight": (hidden,)}
    if not config.get("tie_word_embeddings", False):
        table["lm_head.weight"] = (rows, hidden)
    attention = {"q": (queries, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, queries)}
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        **{f"self_attn.{letter}_proj": shape for letter, shape in attention.items()},
        "mlp.gate_proj": (feed, hidden),
        "mlp.up_proj": (feed, hidden),
        "mlp.down_proj": (hidden, feed),
    }
    biased: tuple[str, ...] = ("self_attn.",) if config.get("attention_bias") else ()
    biased += ("mlp.",) if config.get("mlp_bias") else ()
    if _family(config) == "qwen3":
        layer |= {"self_attn.q_norm": (head_dim,), "self_attn.k_norm": (head_dim,)}
    for number in range(config["num_hidden_layers"]):
        for module, shape in layer.items():
            table[f"model.layers.{number}.{module}.weight"] = shape
            if module.startswith(biased):
                table[f"model.layers.{number}.{module}.bias"] = shape[:1]
    return table


def _check_cuts(pre: Mapping[str, Any], source: str) -> None:
    """How text is cut before it is merged."""
    steps = pre.get("pretokenizers", []) if pre.get("type") == "Sequence" else [pre]
    types = [step.get("type") for step in steps]
    if any(step.get("add_prefix_space") for step in steps):
        raise _refused(source, "the tokenizer adds a space before the text", _BYTE_LEVEL)
    known = (
        (types == ["ByteLevel"] and steps[0].get("use_regex", True))
        or (types == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"))
        or (
            types == ["Split", "ByteLevel"]
            and not steps[1].get("use_regex", True)
            and steps[0].get("pattern", {}).get("Regex") in _SPLITS
        )
    )
    if not known:
        raise _refused(source, f"the pre-tokenizer {json.dumps(pre)[:120]} is not known", _BYTE_LEVEL)


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings: `rope_parameters` since Transformers 5, `rope_scaling` before."""
    found: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        value = config.get(key)
        found |= value if isinstance(value, dict) else {}
    return found


def _family(config: Mapping[str, Any]) -> str:
    return CONVERTIBLE[config["architectures"][0]]


def _refused(source: str, what: str, fix: str) -> ModelError:
    return ModelError(f"{source} cannot be converted to GGUF: {what}", fix=fix)
