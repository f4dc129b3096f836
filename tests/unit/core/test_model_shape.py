"""What a stranger's `config.json` may hold: sizes that can be, or one error."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from tasks.core.errors import ModelError
from tasks.core.model_shape import parse_model_shape, read_model_shape

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
NO_SIZE = (math.inf, math.nan, 0, -1, True, "4", [], {}, 1e308, 4.5, 10**30, 10**400)


@pytest.mark.parametrize("value", NO_SIZE, ids=lambda value: repr(value)[:12])
@pytest.mark.parametrize("key", SIZES + OPTIONAL)
def test_what_is_no_size_is_refused(key: str, value: object) -> None:
    config = {**GOOD, "qk_rope_head_dim": 8, key: value}
    with pytest.raises(ModelError, match="a size is missing or wrong") as refused:
        parse_model_shape(json.dumps(config).encode(), "config.json")
    assert len(refused.value.what) < 200


@pytest.mark.parametrize("key", SIZES)
def test_what_is_missing_is_named(key: str) -> None:
    for config in ({**GOOD, key: None}, {name: value for name, value in GOOD.items() if name != key}):
        with pytest.raises(ModelError, match=key):
            parse_model_shape(json.dumps(config).encode(), "config.json")


@pytest.mark.parametrize("key", OPTIONAL)
def test_what_may_be_missing_may_be_null(key: str) -> None:
    shape = parse_model_shape(json.dumps(GOOD).encode(), "config.json")
    assert parse_model_shape(json.dumps({**GOOD, key: None}).encode(), "config.json") == shape


@pytest.mark.parametrize(
    "named", [5, {"a": 1}, [[1]], [{}], [None], [], "x", True, ["x" * 100_000]], ids=lambda v: repr(v)[:9]
)
def test_what_is_no_architecture_is_refused(named: object) -> None:
    with pytest.raises(ModelError, match="Slipway does not know the architecture") as refused:
        parse_model_shape(json.dumps({**GOOD, "architectures": named}).encode(), "config.json")
    assert len(refused.value.what) < 200


def test_a_configuration_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ModelError, match="is not a regular file"):
        read_model_shape(tmp_path)
