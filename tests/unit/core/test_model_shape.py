"""What a stranger's `config.json` may hold: sizes that can be, or one error."""

from __future__ import annotations

import inspect
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.core import config_sizes, kept_layers
from tasks.core.errors import ModelError
from tasks.core.model_shape import check_convertible, parse_model_shape, read_model_shape

GOOD: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "num_attention_heads": 4,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "vocab_size": 100,
    "max_position_embeddings": 128,
}
SIZES = [key for key in GOOD if key != "architectures"]
OPTIONAL = ["num_key_value_heads", "head_dim", "kv_lora_rank"]
ALL_KEYS = sorted(
    set(re.findall(r'"([a-z_]{4,})"', inspect.getsource(config_sizes) + inspect.getsource(kept_layers)))
)
NO_SIZE = (math.inf, math.nan, 0, -1, True, "4", [], {}, 1e308, 4.5, 10**30, 10**400)


@pytest.mark.parametrize("value", NO_SIZE, ids=lambda value: repr(value)[:12])
@pytest.mark.parametrize("key", SIZES + OPTIONAL)
def test_what_is_no_size_is_refused(key: str, value: object) -> None:
    config = {**GOOD, "qk_rope_head_dim": 8, key: value}
    with pytest.raises(ModelError, match="a size is missing or wrong") as refused:
        parse_model_shape(json.dumps(config).encode(), "config.json")
    assert len(refused.value.what) < 200


@pytest.mark.parametrize("key", SIZES)
def test_what_is_missing_is_named_where_a_model_is_converted(key: str) -> None:
    for config in ({**GOOD, key: None}, {name: value for name, value in GOOD.items() if name != key}):
        shape = parse_model_shape(json.dumps(config).encode(), "config.json")
        with pytest.raises(ModelError, match=f"a size is missing or wrong: {key}"):
            check_convertible(shape, "config.json")


@pytest.mark.parametrize(
    ("key", "unread"),
    [
        ("num_hidden_layers", ("how much memory keys and values take (the number of layers is missing)",)),
        ("num_attention_heads", ("how much memory keys and values take (the size of a head is missing)",)),
        ("hidden_size", ("how much memory keys and values take (the size of a head is missing)",)),
        ("max_position_embeddings", ("which context is the longest",)),
        ("vocab_size", ()),
    ],
)
def test_what_is_missing_is_not_predicted(key: str, unread: tuple[str, ...]) -> None:
    shape = parse_model_shape(json.dumps({**GOOD, key: None}).encode(), "config.json")
    assert shape.unread == unread
    assert (shape.kv_bytes_per_token is None) == (len(unread) == 1 and "memory" in unread[0])
    assert shape.kv_bytes(100) == 100 * (shape.kv_bytes_per_token or 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10_001},
        {"num_hidden_layers": 2**40},
        {"num_attention_heads": 128},
        {"attn_layer_period": 0},
        {"layer_types": ["sliding_attention"] * 2, "sliding_window": "4096"},
        {"num_kv_heads": [2, True], "num_key_value_heads": None},
        {"num_kv_heads": [2], "num_key_value_heads": None},
        {"use_cla": True, "cla_share_factor": 0},
        {"num_kv_shared_layers": -1},
        {"rope_scaling": {"type": "yarn", "factor": 2, "original_max_position_embeddings": "8"}},
        {"block_configs": [{"attention": {"n_heads_in_group": 0}}] * 2},
    ],
    ids=str,
)
def test_a_damaged_size_is_refused_wherever_it_stands(changes: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="a size is missing or wrong"):
        parse_model_shape(json.dumps({**GOOD, **changes}).encode(), "config.json")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"layer_types": ["full_attention"]}, "only 1 of 2 layers are described"),
        ({"layer_types": ["full_attention", 7]}, "layers of the kind 7 are not known"),
        ({"layer_types": ["full_attention", ["x"]]}, "are not known"),
        ({"attn_type_list": [0, 2]}, "are not known"),
        ({"hybrid_layer_pattern": [0, {}]}, "are not known"),
        ({"block_configs": [1, 2]}, "blocks without attention"),
        ({"hybrid_override_pattern": "*"}, "only 1 of 2 layers"),
    ],
    ids=str,
)
def test_what_nobody_knows_is_not_guessed(changes: dict[str, object], why: str) -> None:
    shape = parse_model_shape(json.dumps({**GOOD, **changes}).encode(), "config.json")
    assert shape.kept is None
    assert why in shape.unread[0]


def test_an_encoder_keeps_nothing() -> None:
    """It reads a text at once, so that a longer context takes no memory for keys and values."""
    shape = parse_model_shape(json.dumps({**GOOD, "type_vocab_size": 2}).encode(), "config.json")
    assert (shape.kept, shape.unread, shape.kv_bytes(4096)) == ((), (), 0)


ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.sampled_from(["", "L", "*M", "yarn", "gemma2"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["attention", "factor", "type"]), inner),
    max_leaves=6,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(ALL_KEYS), ODD, max_size=6))
def test_odd_values_end_in_a_shape_or_in_one_error(odd: dict[str, object]) -> None:
    try:
        shape = parse_model_shape(json.dumps({**GOOD, **odd}).encode(), "config.json")
    except ModelError:
        return
    assert shape.kv_bytes(64) >= 0


@pytest.mark.parametrize("key", OPTIONAL)
def test_what_may_be_missing_may_be_null(key: str) -> None:
    shape = parse_model_shape(json.dumps(GOOD).encode(), "config.json")
    assert parse_model_shape(json.dumps({**GOOD, key: None}).encode(), "config.json") == shape


@pytest.mark.parametrize(
    "named", [5, {"a": 1}, [[1]], [{}], [None], [], "x", True], ids=lambda v: repr(v)[:9]
)
def test_what_is_no_architecture_is_refused(named: object) -> None:
    with pytest.raises(ModelError, match=r"config\.json names no architecture") as refused:
        parse_model_shape(json.dumps({**GOOD, "architectures": named}).encode(), "config.json")
    assert len(refused.value.what) < 200


def test_a_long_name_is_cut() -> None:
    named = {"architectures": ["x" * 100_000], "model_type": "y" * 100_000}
    shape = parse_model_shape(json.dumps(named).encode(), "config.json")
    assert (len(shape.architecture), len(shape.family)) == (80, 80)


def test_a_configuration_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ModelError, match="is not a regular file"):
        read_model_shape(tmp_path)
