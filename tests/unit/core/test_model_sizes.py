"""What the reader of `config.json` finds in real models, and that each of its rules is needed."""

from __future__ import annotations

import inspect
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tasks.core import config_sizes, kept_layers
from tasks.core.errors import ModelError
from tasks.core.model_shape import ModelShape, parse_model_shape
from tasks.core.safetensors import LENGTH_BYTES, parse_header
from tasks.engines.families import shape_findings
from tasks.staging.layout import lay_out

ROWS: list[dict[str, Any]] = tomllib.loads(Path(__file__).with_name("model_sizes.toml").read_text())["model"]
SHORT = re.compile(r"(list|blocks) ([0-9]+): (.*)")


def whole(value: object) -> Any:
    """The value with every list that the table shortens."""
    if isinstance(value, dict):
        return {key: whole(one) for key, one in value.items()}
    if not isinstance(value, str) or not (short := SHORT.fullmatch(value)):
        return value
    kind, times, items = short.groups()
    found = [item for part in items.split() for item in _run(part)] * int(times)
    return [_block(item) for item in found] if kind == "blocks" else found


def _run(part: str) -> Iterator[object]:
    item, _, count = part.partition("*")
    yield from [int(item) if item.isdecimal() else item] * int(count or 1)


def _block(item: object) -> dict[str, object]:
    no_op = item == "no_op"
    return {
        "attention": {
            "n_heads_in_group": None if no_op else item,
            "no_op": no_op,
            "replace_with_linear": False,
        }
    }


def config_of(row: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = whole(json.loads(row["config"]))
    return config


def shape_in(row: dict[str, Any]) -> ModelShape:
    return parse_model_shape(json.dumps(config_of(row)).encode(), "config.json")


def wrong_with(row: dict[str, Any]) -> str | None:
    """What the reader gets wrong of a row that is not refused."""
    found = shape_in(row)
    windows = [[one.window, one.token_bytes] for one in found.kept or () if one.window]
    got = (found.kv_bytes_per_token, windows, found.max_context, found.stateful)
    expected = (row.get("kv"), row.get("windows", []), row.get("context"), row.get("state", False))
    why, vocabulary = row.get("why", ""), row.get("vocabulary", found.vocabulary)
    right = got == expected and why in " ".join(found.unread) and found.vocabulary == vocabulary
    return None if right else f"{row['name']}: {got}, not {expected} ({found.unread})"


READ = [row for row in ROWS if row["outcome"] != "refused"]


def test_sizes_are_those_of_the_makers() -> None:
    assert len(READ) > 100
    assert [wrong for row in READ if (wrong := wrong_with(row))] == []


def test_what_is_unknown_passes_with_a_warning() -> None:
    wrong = []
    for row in READ:
        said = " ".join(shape_findings(config_of(row), shape_in(row)))
        if bool(said) != (row["outcome"] == "finding") or row.get("why", "") not in said:
            wrong.append((row["name"], said))
    assert wrong == []


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row["outcome"] == "refused"], ids=lambda row: str(row["name"])
)
def test_what_no_engine_could_read_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=row["why"]):
        shape_in(row)


def test_weights_are_those_of_the_headers() -> None:
    """Whatever the architecture: a copy of DeepSeek V3's architecture need not take 671 GB."""
    for row in READ:
        tensor = {"dtype": "U8", "shape": [row["weights"]], "data_offsets": [0, row["weights"]]}
        text = json.dumps({"model.embed_tokens.weight": tensor}).encode()
        header = parse_header(text, LENGTH_BYTES + len(text) + row["weights"], "model.safetensors")
        planned = lay_out({"model.safetensors": header}, "auto", 1)
        assert 0 <= sum(file.size_bytes for file in planned) - row["weights"] < 10_000


def _without(items: Any, taken: object) -> Any:
    if isinstance(items, dict):
        return {key: value for key, value in items.items() if key != taken}
    return type(items)(item for item in items if item != taken)


def _rules() -> Iterator[tuple[str, ModuleType, str, Any]]:
    """Each rule: its name, the module, the name of its table, and that table without it."""
    for name in ("NESTS", "STRETCHES", "STRETCHED_ALREADY", "DEFAULTS"):
        table = getattr(config_sizes, name)
        yield from ((f"{name} {one}", config_sizes, name, _without(table, one)) for one in sorted(table))
    for size, keys in config_sizes.SPELLINGS.items():
        for key in keys:
            fewer = {**config_sizes.SPELLINGS, size: _without(keys, key)}
            yield f"{size} {key}", config_sizes, "SPELLINGS", fewer
    for name in ("KINDS", "LETTERS", "FULL_EVERY", "ANNOUNCED", "RULES"):
        table = getattr(kept_layers, name)
        for one in table:
            yield f"{name} {getattr(one, '__name__', one)}", kept_layers, name, _without(table, one)


def _fails(row: dict[str, Any]) -> bool:
    try:
        return wrong_with(row) is not None
    except ModelError:
        return True


@pytest.mark.parametrize(
    ("module", "table", "fewer"), [pytest.param(*rest, id=name) for name, *rest in _rules()]
)
def test_every_rule_is_needed(
    module: ModuleType, table: str, fewer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, table, fewer)
    assert any(_fails(row) for row in READ)


KEYS = sorted(
    {
        key
        for module in (config_sizes, kept_layers)
        for key in re.findall(r"(?:\.get\(|part\[)\"(\w+)\"", inspect.getsource(module))
    }
    - {"model_type"}
)
"""Every key that the two modules ask for by name, outside their tables."""


def test_keys_are_found_in_the_source() -> None:
    assert len(KEYS) > 30
    assert {
        "kv_lora_rank",
        "swa_head_dim",
        "v_head_dim",
        "use_cla",
        "full_attn_layers",
        "n_heads_in_group",
    } <= set(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_that_is_read_is_needed(key: str) -> None:
    """Of a reader that ignored the key, some row would be wrong."""
    assert any(_fails({**row, "config": json.dumps(_stripped(config_of(row), key))}) for row in READ)


def _stripped(value: object, key: str) -> object:
    if isinstance(value, dict):
        return {name: _stripped(one, key) for name, one in value.items() if name != key}
    return [_stripped(one, key) for one in value] if isinstance(value, list) else value
