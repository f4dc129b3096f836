"""Digests, errors, verdicts, model shapes, cancellation, progress."""

from __future__ import annotations

import json
import logging
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tasks.core import cancellation, progress
from tasks.core.digests import (
    digest_of,
    digest_of_file,
    digest_of_large_file,
    digest_of_model,
    is_digest_of_model,
    short,
)
from tasks.core.errors import ModelError, SlipwayError, StageCancelledError, WrongUseError, one_line
from tasks.core.model_shape import check_convertible, read_model_shape
from tasks.core.spec import parse_spec
from tasks.core.verdicts import StageName, says_no

WORD = st.text(max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | WORD,
    lambda inner: st.dictionaries(WORD, inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(WORD, JSON, max_size=4))
def test_a_digest_depends_on_content_not_on_order(value: dict[str, Any]) -> None:
    assert digest_of(value) == digest_of(dict(reversed(value.items())))
    assert digest_of(value) != digest_of({**value, "one more": True})


def test_digests_of_models_files_and_short_names(tmp_path: Path) -> None:
    spec = parse_spec({"name": "a", "model": "file:x"})
    assert digest_of(spec) == digest_of(spec.model_dump(mode="json"))
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 1_000_000)
    assert digest_of_file(path).startswith("sha256:")
    assert digest_of_large_file(path) == f"blake3:{blake3(b'abc' * 1_000_000).hexdigest()}"
    for digest in (digest_of_file(path), digest_of_large_file(path)):
        assert is_digest_of_model(digest, path)
        assert not is_digest_of_model(f"{digest[:-1]}{'0' if digest[-1] != '0' else '1'}", path)
        assert short(digest) == digest.split(":")[1][:12]


def test_a_folder_is_its_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a").write_bytes(b"abc")
    digest = digest_of_model(tmp_path)
    assert is_digest_of_model(digest, tmp_path)
    (tmp_path / "inner" / "a").write_bytes(b"abd")
    assert not is_digest_of_model(digest, tmp_path)
    (tmp_path / "inner" / "a").write_bytes(b"abc")
    (tmp_path / "inner" / "a").rename(tmp_path / "inner" / "b")
    assert not is_digest_of_model(digest, tmp_path)


@pytest.mark.parametrize(
    ("error", "longest", "said"),
    [
        (OSError("a\n  b"), 300, "a b"),
        (OSError(), 300, "OSError"),
        (OSError("x" * 9), 4, "xxxx…"),
        (OSError("x" * 9), None, "x" * 9),
    ],
)
def test_what_an_error_says_fits_a_line(error: OSError, longest: int | None, said: str) -> None:
    assert one_line(error, longest=longest) == said


def test_an_error_is_one_line_and_json() -> None:
    error = SlipwayError("the disk is full", fix="free some space", detail="df says 0")
    assert str(error) == "the disk is full (free some space)"
    assert error.as_json() == {
        "error": "SlipwayError",
        "what": "the disk is full",
        "fix": "free some space",
        "detail": "df says 0",
        "retryable": False,
    }
    assert WrongUseError("x").exit_code == 2
    assert str(SlipwayError("only this")) == "only this"


def test_every_stage_has_its_noes() -> None:
    assert {stage for stage in StageName if says_no(stage, "no such verdict")} == set()
    assert says_no(StageName.COMPATIBILITY, "unknown")
    assert not says_no(StageName.LEAKS, "none")
    assert says_no(StageName.QUANTIZATION, "none")


def write_config(folder: Path, **changes: Any) -> Path:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 2,
        "hidden_size": 128,
        "num_attention_heads": 4,
        "vocab_size": 257,
        "max_position_embeddings": 512,
    }
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def test_a_models_shape(tmp_path: Path) -> None:
    shape = read_model_shape(write_config(tmp_path, num_key_value_heads=2))
    assert (shape.family, shape.heads, shape.kv_heads) == ("llama", 4, 2)
    assert read_model_shape(write_config(tmp_path)).kv_heads == 4
    assert shape.kv_bytes_per_token == 2 * 2 * 2 * 32 * 2


def test_latent_attention_keeps_less_than_keys_and_values(tmp_path: Path) -> None:
    """The sizes of DeepSeek V3: 61 layers, 128 heads, and 576 values a token and layer."""
    shape = read_model_shape(
        write_config(
            tmp_path,
            architectures=["DeepseekV3ForCausalLM"],
            num_hidden_layers=61,
            num_attention_heads=128,
            num_key_value_heads=128,
            kv_lora_rank=512,
            qk_rope_head_dim=64,
            qk_nope_head_dim=128,
        )
    )
    assert shape.kv_bytes_per_token == 61 * 576 * 2


def test_what_is_known_is_not_all_converted(tmp_path: Path) -> None:
    check_convertible(read_model_shape(write_config(tmp_path)), "config.json")
    known = read_model_shape(write_config(tmp_path, architectures=["Qwen2ForCausalLM"]))
    with pytest.raises(
        ModelError, match=r"m/config.json: .*Slipway cannot convert the architecture Qwen2ForCausalLM"
    ):
        check_convertible(known, "m/config.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": None}, "names no architecture"),
        ({"hidden_size": "wide"}, "a size is missing or wrong"),
        ({"vocab_size": -1}, "a size is missing or wrong"),
    ],
)
def test_a_wrong_config_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_model_shape(write_config(tmp_path, **changes))


def test_no_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"contains no config\.json"):
        read_model_shape(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        read_model_shape(tmp_path)


def test_cancellation_reaches_copied_contexts_only() -> None:
    cancellation.current().cancel("nobody listens")
    cancellation.current().check()

    def inside() -> None:
        signal = cancellation.begin()
        copied = copy_context()
        signal.cancel("compatibility says block")
        signal.cancel("a later reason")
        with pytest.raises(StageCancelledError, match="compatibility says block"):
            copied.run(lambda: cancellation.current().check())

    copy_context().run(inside)
    cancellation.current().check()


def test_progress_goes_to_the_listener_or_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[tuple[str, str]] = []

    def inside() -> None:
        progress.listen(lambda stage, line: heard.append((stage, line)))
        progress.say("staging", "1 of 4")

    copy_context().run(inside)
    assert heard == [("staging", "1 of 4")]
    with caplog.at_level(logging.INFO, logger="slipway"):
        progress.say("staging", "2 of 4")
    assert "staging: 2 of 4" in caplog.text
