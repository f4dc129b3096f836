"""What each layer of a model keeps of a token while it generates: all keys and values, those of a window, none. Pure.

`RULES` are asked in order for the kinds of a model's layers, and the first that knows them answers. A configuration
that announces something else is not guessed at: `UnreadableError` says what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

from pydantic import Field

from tasks.core.config_sizes import LARGEST, NotASizeError, checked, longest_context, size_of
from tasks.core.frozen import Frozen

VALUE_BYTES = 2
"""Keys and values have 16 bits each."""


class Kind(Enum):
    """What a layer keeps: keys and values, or a state of one size, as recurrent layers do."""

    FULL = "full"
    WINDOW = "window"
    CHUNK = "chunk"
    STATE = "state"
    NOTHING = "nothing"


class KeptLayers(Frozen):
    """Layers that keep keys and values in the same way: of a token `token_bytes` in all of them together, of the last
    `window` tokens, or of all if None."""

    layers: int = Field(ge=1)
    token_bytes: int = Field(ge=1)
    window: int | None = Field(None, ge=1)


class UnknownLayersError(Exception):
    """The configuration says something about layers that no rule reads."""


KINDS = {
    "full_attention": Kind.FULL, "attention": Kind.FULL, "hybrid": Kind.FULL,
    "indexed_attention": Kind.FULL, "deepseek_sparse_attention": Kind.FULL,
    "sliding_attention": Kind.WINDOW, "chunked_attention": Kind.CHUNK,
    "linear_attention": Kind.STATE, "mamba": Kind.STATE, "conv": Kind.STATE, "recurrent": Kind.STATE,
    "moe": Kind.NOTHING, "mlp": Kind.NOTHING,
}  # fmt: skip
"""Names of layer kinds, in `layer_types`, `layers_block_type` and `block_types`. A hybrid layer has both kinds;
one with an index reads only a part of what it keeps."""

LETTERS = {"*": Kind.FULL, "M": Kind.STATE}
"""Letters of `hybrid_override_pattern`; the others are feed-forward."""

FULL_EVERY = {
    "cohere2": (4, Kind.WINDOW), "gemma2": (2, Kind.WINDOW), "gemma3_text": (6, Kind.WINDOW),
    "gpt_oss": (2, Kind.WINDOW), "llama4_text": (4, Kind.CHUNK), "olmo3": (4, Kind.WINDOW),
    "qwen3_next": (4, Kind.STATE),
}  # fmt: skip
"""Model types of which every so many layers keep the whole context and the others do not, where no key says so
(transformers 5.24, `configuration_*.py`)."""

ANNOUNCED = {
    "compress_ratios": "keys and values are compressed",
    "is_encoder_decoder": "it has an encoder of its own",
}
"""Keys that announce another way of keeping keys and values, if they are set."""

Kinds = Sequence[Kind]
Rule = Callable[[Mapping[str, Any], int], Kinds | None]


def kept_layers(part: Mapping[str, Any], layers: int) -> tuple[KeptLayers, ...]:
    """What the layers keep, those of one way together. Raises `UnknownLayersError` or `NotASizeError`."""
    for key, what in ANNOUNCED.items():
        if part.get(key):
            raise UnknownLayersError(what)
    if part.get("type_vocab_size"):
        return ()  # an encoder reads a text at once
    kinds = kinds_of(part, layers)
    window, chunk = _window(part), part.get("attention_chunk_size")
    bounds = {
        Kind.WINDOW: window,
        Kind.CHUNK: None if chunk is None else checked(chunk, "attention_chunk_size"),
    }
    found: dict[int | None, list[int]] = {}
    for number, kind in enumerate(kinds):
        bound = bounds.get(kind)
        if kind not in (Kind.STATE, Kind.NOTHING):
            narrow = kind is not Kind.FULL and bound is not None
            found.setdefault(bound, []).append(
                _token_bytes(part, number, narrow=narrow, mixed=window is not None)
            )
    whole, shared = longest_context(part) or LARGEST, _sharing(part)
    groups: dict[int | None, tuple[int, int]] = {}
    for bound, sizes in found.items():
        seen = None if bound is None or bound >= whole else bound
        count, size = groups.get(seen, (0, 0))
        groups[seen] = count + len(sizes), size + sum(sizes) // shared
    return tuple(
        KeptLayers(layers=count, token_bytes=size, window=bound)
        for bound, (count, size) in sorted(groups.items(), key=lambda group: group[0] or 0)
    )


def keeps_state(part: Mapping[str, Any], layers: int) -> bool:
    """Whether some layers keep a state as well. Raises `UnknownLayersError`."""
    return Kind.STATE in kinds_of(part, layers) or part.get("mamba_d_state") is not None


def kinds_of(part: Mapping[str, Any], layers: int) -> Kinds:
    """The kind of each layer. Raises `UnknownLayersError`."""
    found = next((kinds for rule in RULES if (kinds := rule(part, layers)) is not None), [Kind.FULL] * layers)
    if len(found) < layers:
        raise UnknownLayersError(f"only {len(found)} of {layers} layers are described")
    own = layers - _shared_at_the_end(part)
    return [kind if number < own else Kind.NOTHING for number, kind in enumerate(found[:layers])]


def listed_layers(part: Mapping[str, Any]) -> int | None:
    """The number of layers of a model that only lists them."""
    listed = part.get("layers_block_type")
    return len(listed) if isinstance(listed, list) and listed else None


def by_names(part: Mapping[str, Any], _: int) -> Kinds | None:
    """A name for each layer, in `layer_types` or `layers_block_type`."""
    return _named(part.get("layer_types")) or _named(part.get("layers_block_type"))


def by_repeated_names(part: Mapping[str, Any], layers: int) -> Kinds | None:
    """`block_types` of RecurrentGemma, repeated; its attention has a window."""
    named = _named(part.get("block_types"))
    if named is None:
        return None
    kinds = [Kind.WINDOW if kind is Kind.FULL else kind for kind in named]
    return (kinds * (layers // len(kinds) + 1))[:layers]


def by_letters(part: Mapping[str, Any], _: int) -> Kinds | None:
    """`hybrid_override_pattern` of Nemotron-H: a letter for each layer."""
    letters = part.get("hybrid_override_pattern")
    if not isinstance(letters, str) or not letters:
        return None
    return [LETTERS.get(letter, Kind.NOTHING) for letter in letters]


def by_window_flags(part: Mapping[str, Any], _: int) -> Kinds | None:
    """`hybrid_layer_pattern` of MiMo: 1 is a window."""
    return _flagged(part.get("hybrid_layer_pattern"), {0: Kind.FULL, 1: Kind.WINDOW})


def by_attention_flags(part: Mapping[str, Any], _: int) -> Kinds | None:
    """`attn_type_list` of MiniMax: 0 is linear."""
    return _flagged(part.get("attn_type_list"), {0: Kind.STATE, 1: Kind.FULL})


def by_blocks(part: Mapping[str, Any], _: int) -> Kinds | None:
    """`block_configs` of models that were pruned layer by layer (DeciLM, Nemotron Super)."""
    blocks = _blocks(part)
    return None if blocks is None else [Kind.FULL if _group(one) else Kind.NOTHING for one in blocks]


def by_numbers(part: Mapping[str, Any], layers: int) -> Kinds | None:
    """The numbers of the layers with attention: from 0 in LFM2 and Bamba, from 1 in Kimi Linear."""
    linear = part.get("linear_attn_config")
    from_one = linear.get("full_attn_layers") if isinstance(linear, dict) else None
    for numbers, first in (
        (part.get("full_attn_idxs"), 0),
        (part.get("attn_layer_indices"), 0),
        (from_one, 1),
    ):
        if isinstance(numbers, list) and numbers:
            return [Kind.FULL if number + first in numbers else Kind.STATE for number in range(layers)]
    return None


def by_period(part: Mapping[str, Any], layers: int) -> Kinds | None:
    """`attn_layer_period` and `attn_layer_offset` of Jamba, or `full_attention_interval` of Qwen3-Next."""
    period, offset = part.get("attn_layer_period"), part.get("attn_layer_offset", 0)
    if period is None and (period := part.get("full_attention_interval")) is not None:
        offset = checked(period, "full_attention_interval") - 1
    if period is None:
        return None
    every = checked(period, "attn_layer_period")
    return [Kind.FULL if number % every == offset else Kind.STATE for number in range(layers)]


def by_window_pattern(part: Mapping[str, Any], layers: int) -> Kinds | None:
    """`sliding_window_pattern`: every so many layers one sees all, or letters: L is local, G global."""
    pattern = part.get("sliding_window_pattern")
    if isinstance(pattern, str) and pattern:
        return [
            Kind.WINDOW if pattern[number % len(pattern)] == "L" else Kind.FULL for number in range(layers)
        ]
    return None if not pattern else _every(checked(pattern, "sliding_window_pattern"), Kind.WINDOW, layers)


def by_model_type(part: Mapping[str, Any], layers: int) -> Kinds | None:
    """What the class of the model type does if no key says anything."""
    found = FULL_EVERY.get(str(part.get("model_type")))
    return None if found is None else _every(*found, layers)


def by_upper_layers(part: Mapping[str, Any], layers: int) -> Kinds | None:
    """`use_sliding_window` and `max_window_layers` of Qwen: the layers above slide."""
    below = part.get("max_window_layers")
    if not part.get("use_sliding_window") or isinstance(below, bool) or not isinstance(below, int):
        return None
    return [Kind.WINDOW if number >= below else Kind.FULL for number in range(layers)]


def by_window_alone(part: Mapping[str, Any], layers: int) -> Kinds | None:
    """A window and nothing else: all layers slide."""
    return [Kind.WINDOW] * layers if _window(part) else None


def by_state(part: Mapping[str, Any], layers: int) -> Kinds | None:
    """Mamba: a state, and no heads of attention."""
    return [Kind.STATE] * layers if part.get("state_size") and size_of(part, "heads") is None else None


RULES: tuple[Rule, ...] = (
    by_names, by_repeated_names, by_letters, by_window_flags, by_attention_flags, by_blocks, by_numbers, by_period,
    by_window_pattern, by_model_type, by_upper_layers, by_window_alone, by_state,
)  # fmt: skip


def _window(part: Mapping[str, Any]) -> int | None:
    """Tokens that a layer with a window looks back; None if the model uses none."""
    return None if part.get("use_sliding_window") is False else size_of(part, "window")


def _token_bytes(part: Mapping[str, Any], number: int, *, narrow: bool, mixed: bool) -> int:
    """Bytes that one layer keeps of a token. `narrow`: it has a window; `mixed`: some layers of the model do."""
    if part.get("kv_lora_rank") is not None:  # multi-head latent attention
        latent = checked(part["kv_lora_rank"], "kv_lora_rank")
        return (latent + checked(part.get("qk_rope_head_dim"), "qk_rope_head_dim")) * VALUE_BYTES
    keys = _head_dim(part, narrow=narrow, mixed=mixed)
    own = part.get("swa_v_head_dim") if narrow else part.get("v_head_dim")
    values = keys if own is None else checked(own, "v_head_dim")
    return _kv_heads(part, number, narrow=narrow, mixed=mixed) * (keys + values) * VALUE_BYTES


def _head_dim(part: Mapping[str, Any], *, narrow: bool, mixed: bool) -> int:
    own = part.get("swa_head_dim") if narrow else part.get("global_head_dim") if mixed else None
    if own is not None:
        return checked(own, "head_dim")
    if (given := size_of(part, "head_dim")) is not None:
        return given
    hidden, heads = size_of(part, "hidden"), size_of(part, "heads")
    if hidden is None or heads is None:
        raise UnknownLayersError("the size of a head is missing")
    if hidden < heads:
        raise NotASizeError("num_attention_heads is not a size")
    return hidden // heads


def _kv_heads(part: Mapping[str, Any], number: int, *, narrow: bool, mixed: bool) -> int:
    if narrow and part.get("swa_num_key_value_heads") is not None:
        return checked(part["swa_num_key_value_heads"], "swa_num_key_value_heads")
    if mixed and not narrow and part.get("attention_k_eq_v") and part.get("num_global_key_value_heads"):
        return checked(part["num_global_key_value_heads"], "num_global_key_value_heads")
    listed = part.get("num_kv_heads")
    if isinstance(listed, list):
        return checked(listed[number] if number < len(listed) else None, "num_kv_heads")
    heads = size_of(part, "heads")
    if (blocks := _blocks(part)) is not None and heads is not None:
        return max(1, heads // (_group(blocks[number]) or heads))
    return shared_heads(part, heads)


def shared_heads(part: Mapping[str, Any], heads: int | None) -> int:
    """Heads that keep keys and values: those that are named, one of multi-query attention, or all.

    Raises `UnknownLayersError` or `NotASizeError`.
    """
    if part.get("multi_query") and not part.get("new_decoder_architecture"):  # Falcon, StarCoder
        return 1
    found = size_of(part, "kv_heads") or heads
    if found is None:
        raise UnknownLayersError("the number of heads is missing")
    return found


def _sharing(part: Mapping[str, Any]) -> int:
    """How many layers share one cache (cross-layer attention of Hunyuan)."""
    factor = part.get("cla_share_factor") if part.get("use_cla") else None
    return 1 if factor is None else checked(factor, "cla_share_factor")


def _shared_at_the_end(part: Mapping[str, Any]) -> int:
    """Layers at the end that read the cache of an earlier one (Gemma 3n)."""
    count = part.get("num_kv_shared_layers")
    return 0 if not count else checked(count, "num_kv_shared_layers")


def _named(names: object) -> Kinds | None:
    if not isinstance(names, list) or not names:
        return None
    unknown = next((name for name in names if not isinstance(name, str) or name not in KINDS), None)
    if unknown is not None:
        raise UnknownLayersError(f"layers of the kind {str(unknown)[:40]} are not known")
    return [KINDS[name] for name in names]


def _flagged(flags: object, meaning: Mapping[int, Kind]) -> Kinds | None:
    if not isinstance(flags, list) or not flags:
        return None
    if any(isinstance(flag, bool) or flag not in (0, 1) for flag in flags):
        raise UnknownLayersError(f"layers of the kind {str(flags[0])[:40]} are not known")
    return [meaning[flag] for flag in flags]


def _every(count: int, others: Kind, layers: int) -> Kinds:
    return [Kind.FULL if (number + 1) % count == 0 else others for number in range(layers)]


def _blocks(part: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    blocks = part.get("block_configs")
    if not isinstance(blocks, list) or not blocks:
        return None
    found = [one.get("attention") if isinstance(one, dict) else None for one in blocks]
    if not all(isinstance(one, dict) for one in found):
        raise UnknownLayersError("block_configs has blocks without attention")
    return [one for one in found if one is not None]


def _group(block: Mapping[str, Any]) -> int | None:
    """Heads of a pruned layer that share keys and values; None if it has no attention."""
    if block.get("no_op") or block.get("replace_with_linear"):
        return None
    return checked(block.get("n_heads_in_group"), "n_heads_in_group")
