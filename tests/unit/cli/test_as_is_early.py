"""A model that comes quantized, or with code: what is wrong with the wish is told before anything is built."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from quantized_model import FP8_BLOCK, say_quantized, write_int8_model
from small_gguf import write_gguf

from blocks.services.early_checks import check_model, type_without_code, weights_of
from tasks.core.errors import SlipwayError
from tasks.core.settings import Settings
from tasks.core.spec import parse_spec

TEXT = {"quality_text": "/text"}


@pytest.fixture(scope="module")
def models(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """int8, whole, another, quantized by its own file alone, and with code; a GGUF file."""
    folder = tmp_path_factory.mktemp("models")
    write_int8_model(random_model, folder / "int8")
    for name in ("whole", "another", "alone", "code", "deepseek"):
        shutil.copytree(random_model, folder / name)
    say_quantized(folder / "another", None, num_hidden_layers=3)
    (folder / "alone" / "hf_quant_config.json").write_text(
        json.dumps({"quantization": {"quant_algo": "FP8"}})
    )
    say_quantized(folder / "code", None, auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
    say_quantized(folder / "deepseek", FP8_BLOCK)
    write_gguf(folder / "gguf.gguf")
    return folder


def told(models: Path, model: str, *, engine: str = "transformers", **keys: object) -> str:
    """The remarks, or the error."""
    values = json.loads(json.dumps({"name": "tiny", "model": f"file:{model}", "engine": engine, **keys}))
    spec = parse_spec(values, base=models)
    try:
        return "; ".join(check_model(spec, Settings.load())).replace(str(models), "HERE")
    except SlipwayError as error:
        return str(error).replace(str(models), "HERE")


@pytest.mark.parametrize(
    ("model", "keys", "expected"),
    [
        ("int8", {}, ""),
        ("deepseek", {}, ""),
        ("int8", {"tuning": {"candidates": ["as-is"], "baseline": "file:whole", **TEXT}}, ""),
        ("whole", {"tuning": {"candidates": ["as-is"]}}, "tuning.candidates: as-is is for models that come quantized"),
        ("int8", {"tuning": {"candidates": ["w8a8"]}}, "so w8a8 cannot be made of it"),
        ("int8", {"engine": "llama.cpp"}, "cannot be converted to GGUF for llama.cpp"),
        ("alone", {}, "by hf_quant_config.json alone, which transformers does not read"),
        ("whole", {"tuning": {"baseline": "file:whole", **TEXT}}, "tuning.baseline is for a model that is served"),
        ("int8", {"tuning": {"baseline": "file:int8", **TEXT}}, "tuning.baseline file:HERE/int8 comes quantized"),
        ("int8", {"tuning": {"baseline": "file:another", **TEXT}}, "tuning.baseline is another model: layers 3, not 2"),
        ("int8", {"tuning": {"baseline": "file:gguf.gguf", **TEXT}}, "comes as GGUF, but transformers loads folders"),
        ("int8", {"tuning": {"baseline": "file:none", **TEXT}}, "none"),
        ("code", {}, "comes with code of its own, which is not run (serving.trust_remote_code): modeling_own.py"),
        ("code", {"serving": {"trust_remote_code": True}}, "file:HERE/code lacks modeling_own.py, the code that"),
    ],
)  # fmt: skip
def test_what_is_said_of_a_wish(
    models: Path, slipway_home: Path, model: str, keys: dict[str, Any], expected: str
) -> None:
    found = told(models, model, **keys)
    assert expected in found
    assert bool(found) == bool(expected)
    assert not slipway_home.exists()


def test_a_baseline_of_a_gguf_model_is_one_too(models: Path, slipway_home: Path) -> None:
    tuning = {"baseline": "file:whole", **TEXT}
    found = told(models, "gguf.gguf", engine="llama.cpp", tuning=tuning)
    assert "comes in a folder, not as GGUF, but llama.cpp loads files in GGUF" in found


def test_a_template_counts_only_for_a_model_that_chats(tmp_path: Path, slipway_home: Path) -> None:
    """Embedding models come with the template of the model that they were trained from."""
    write_gguf(tmp_path / "chats.gguf", tokenizer__chat_template="Hello")
    write_gguf(tmp_path / "embeds.gguf", tokenizer__chat_template="Hello", llama__pooling_type=3)
    assert "without the user's words" in told(tmp_path, "chats.gguf", engine="llama.cpp")
    assert told(tmp_path, "embeds.gguf", engine="llama.cpp") == ""


def test_a_baseline_needs_a_text() -> None:
    with pytest.raises(SlipwayError, match=r"a baseline also needs a text: name one in tuning.quality_text"):
        parse_spec({"name": "tiny", "model": "file:m", "tuning": {"baseline": "file:w"}})
    with pytest.raises(SlipwayError, match=r"tuning.baseline: must be file:PATH"):
        parse_spec({"name": "tiny", "model": "file:m", "tuning": {"baseline": "whole", **TEXT}})


def test_which_models_the_engine_must_know_by_itself(models: Path, slipway_home: Path) -> None:
    def asked(name: str, **keys: object) -> str | None:
        spec = parse_spec(
            {"name": "tiny", "model": f"file:{models / name}", "engine": "transformers", **keys}
        )
        return type_without_code(spec.model, spec, Settings.load())

    assert asked("code") == "qwen3"
    assert asked("code", serving={"trust_remote_code": True}) is None
    assert asked("code", engine="llama.cpp") is None
    assert asked("whole") is None
    assert asked("none") is None
    assert weights_of(f"file:{models / 'none'}", (), Settings.load()) is None
