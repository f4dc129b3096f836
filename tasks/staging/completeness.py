"""Whether the tensors that are there are all that the model needs. Pure.

An engine may fill what is missing with random values and serve it: nonsense that every health check passes. What a
model needs is known from its `config.json` (layers, embeddings, output) and from the layers themselves: each has the
same modules as the others of its kind. Names that are not known prove nothing, and are not refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

_LAYER = re.compile(
    r"(?P<stack>(?:.*?\.)?(?:layers|layer|h|blocks|block))\.(?P<number>\d{1,6})\.(?P<rest>.+)", re.ASCII
)
_NOT_TEXT = re.compile(r"vision|visual|audio|image|video|vit\b|speech|mtp|projector|depth", re.IGNORECASE)
_TEXT_CONFIGS = ("text_config", "llm_config", "language_config")
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_MOST_LAYERS = 2_000
"""A bound for hostile files: real models have less than 200."""

_BEYOND = 4
"""A list with a value for each layer may go on with those of layers for multi-token prediction."""

_EMBEDDING = re.compile(r"emb|wte|shared\.weight|(?:^|\.)w\.weight", re.IGNORECASE)
_NORM = re.compile(r"norm|ln_f|ln_out", re.IGNORECASE)
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|output|embed_out|head|output_layer|score|classifier|predictions)\.")
_BESIDE = re.compile(
    r"scale|zeros|zero_point|absmax|quant_map|quant_state|g_idx|weight_shape|weight_format|bias|SCB|inv_freq"
)
"""What is stored with a weight, and not in every layer: biases, and what quantized ones are unpacked by."""
_VALUES = re.compile(r"(?:\.(?:weight|qweight|weight_packed)|_blocks)$")

_DENSE = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
_MODULES = {
    "LlamaForCausalLM": _DENSE,
    "MistralForCausalLM": _DENSE,
    "Qwen2ForCausalLM": _DENSE,
    "Qwen3ForCausalLM": (*_DENSE, "self_attn.q_norm", "self_attn.k_norm"),
    "Gemma2ForCausalLM": _DENSE,
    "Gemma3ForCausalLM": _DENSE,
}
"""What each layer of these architectures has (transformers 5.23, models/*/modeling_*.py)."""
_UNTIED = {*_MODULES, "Qwen3MoeForCausalLM", "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"} - {
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
}
"""Architectures with an output layer of their own unless `config.json` says otherwise."""


def missing_tensors(config: Mapping[str, Any], names: Iterable[str]) -> tuple[str, ...]:
    """Tensors, modules or layers that the model needs and that are not among these names, in order; none if nothing
    is known to be missing."""
    stacks, outside = _sort(names)
    architecture = _architecture(config)
    text = _text_of(config)
    count = _layer_count(text)
    if count is None:
        return ()
    stack, layers = _main_stack(stacks)
    if stack is None:
        return ("the layers",) if architecture in _MODULES else ()
    twins = [name for name, one in stacks.items() if len(one) >= len(layers) and not _NOT_TEXT.search(name)]
    # What a model counts that has two such stacks, an encoder and a decoder, is not known.
    end = count if len(twins) == 1 else min(count, max(layers) + 1)
    missing = [f"{stack}.{number}" for number in range(end) if number not in layers]
    there = {number: modules for number, modules in layers.items() if number < count}
    missing += [
        f"{stack}.{number}.{module}"
        for number, modules in sorted(_lacking(there, text, count, _MODULES.get(architecture, ())).items())
        for module in modules
    ]
    normed = any(_NORM.search(module) for modules in layers.values() for module in modules)
    return (*missing, *_missing_outside(outside, config, text, architecture, normed=normed))


def has_layers(names: Iterable[str]) -> bool:
    """Whether any name is one that this module can judge."""
    return _main_stack(_sort(names)[0])[0] is not None


def is_adapted(names: Iterable[str]) -> bool:
    """Whether the tensors are those of a LoRA adapter, whatever their file is called."""
    return any(".lora_A." in name or ".lora_B." in name or ".lora_a" in name for name in names)


def _sort(names: Iterable[str]) -> tuple[dict[str, dict[int, set[str]]], list[str]]:
    """The modules of each layer of each stack, and the names outside of layers."""
    stacks: dict[str, dict[int, set[str]]] = {}
    outside = []
    for name in names:
        found = _LAYER.fullmatch(name)
        if found is None:
            outside.append(name)
            continue
        modules = stacks.setdefault(found["stack"], {}).setdefault(int(found["number"]), set())
        if not _BESIDE.search(found["rest"]):
            modules.add(_VALUES.sub("", found["rest"]))
    return stacks, outside


def _main_stack(stacks: Mapping[str, dict[int, set[str]]]) -> tuple[str | None, dict[int, set[str]]]:
    """The largest stack of the language model."""
    text = {name: layers for name, layers in stacks.items() if not _NOT_TEXT.search(name)}
    if not text:
        return None, {}
    name = max(text, key=lambda one: len(text[one]))
    return name, text[name]


def _lacking(
    layers: Mapping[int, set[str]], text: Mapping[str, Any], count: int, required: Sequence[str]
) -> dict[int, list[str]]:
    """Modules that layers lack: those that the architecture requires, and those that one layer alone lacks."""
    lacking = {number: [one for one in required if one not in modules] for number, modules in layers.items()}
    if not required and "block_configs" in text:
        return lacking  # each layer has modules of its own
    kinds: dict[str, list[int]] = {}
    said = _said_of_layers(text, count)
    for number in layers:
        kinds.setdefault(repr([one(number) for one in said]), []).append(number)
    for members in kinds.values():
        sets = Counter(frozenset(layers[number]) for number in members)
        for number in members:
            # Ends may differ by design: the first layer of ModernBERT has no norm, that of RWKV-7 no residual.
            if not required and number in (0, count - 1):
                continue
            modules = frozenset(layers[number])
            larger = [one for one in sets if modules < one]
            if sets[modules] == 1 and larger:
                model = max(larger, key=lambda one: sets[one])
                lacking[number] = sorted({*lacking[number], *(model - modules)})
    return {number: modules for number, modules in lacking.items() if modules}


def _said_of_layers(text: Mapping[str, Any], count: int) -> list[Callable[[int], object]]:
    """What the configuration says of a layer, by its number: in lists or texts that have a value for each, or that
    name some of them."""
    said: list[Callable[[int], object]] = []
    for value in _lists(text):
        if count <= len(value) <= count + _BEYOND:
            said.append(value.__getitem__)
        elif isinstance(value, list) and all(type(one) is int for one in value):
            said.append(frozenset(value).__contains__)
    return said


def _lists(text: Mapping[str, Any]) -> Iterable[list[Any] | str]:
    for value in text.values():
        if isinstance(value, list | str):
            yield value
        elif isinstance(value, dict):
            yield from (one for one in value.values() if isinstance(one, list))


def _missing_outside(
    outside: Sequence[str],
    config: Mapping[str, Any],
    text: Mapping[str, Any],
    architecture: str,
    *,
    normed: bool,
) -> list[str]:
    missing = []
    if not any(_EMBEDDING.search(name) for name in outside):
        missing.append("the embeddings")
    # A decoder with RMS norms ends with one, unless its norms have no weights at all.
    if normed and "rms_norm_eps" in text and not any(_NORM.search(name) for name in outside):
        missing.append("the last norm")
    if _has_own_head(config, text, architecture) and not any(map(_HEAD.search, outside)):
        missing.append("lm_head.weight")
    return missing


def _has_own_head(config: Mapping[str, Any], text: Mapping[str, Any], architecture: str) -> bool:
    """Whether the output layer is one of its own, for all that the configuration says."""
    if not architecture.endswith(("ForCausalLM", "ForConditionalGeneration")):
        return False
    said = [one.get("tie_word_embeddings") for one in (config, text)]
    if True in said:
        return False
    return text.get("tie_word_embeddings") is False or (text is config and architecture in _UNTIED)


def _architecture(config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else ""


def _text_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of the configuration that describes the language model."""
    return next((one for key in _TEXT_CONFIGS if isinstance(one := config.get(key), dict)), config)


def _layer_count(text: Mapping[str, Any]) -> int | None:
    found = (text[key] for key in _COUNTS if key in text)
    count = next(found, None)
    return count if type(count) is int and 1 <= count <= _MOST_LAYERS else None
