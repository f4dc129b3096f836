"""The committed tiny model is whole, small, bf16, and as good as its card says. No torch needed."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

TINY = Path(__file__).resolve().parents[3] / "examples" / "tiny"
MODEL = TINY / "model"
MODEL_FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def read_json(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(value, dict)
    return value


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return read_json(MODEL / "config.json")


@pytest.fixture(scope="module")
def metrics() -> dict[str, Any]:
    return read_json(TINY / "metrics.json")


@pytest.fixture(scope="module")
def tensors() -> dict[str, Any]:
    """The safetensors header: name to dtype, shape and data_offsets."""
    with (MODEL / "model.safetensors").open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    assert isinstance(header, dict)
    header.pop("__metadata__", None)
    return header


def expected_shapes(config: dict[str, Any]) -> dict[str, list[int]]:
    """Every tensor a Qwen3 with tied embeddings of this config has, with its shape."""
    hidden, feed_forward, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes = {"model.embed_tokens.weight": [config["vocab_size"], hidden], "model.norm.weight": [hidden]}
    layer = {
        "input_layernorm": [hidden],
        "post_attention_layernorm": [hidden],
        "self_attn.q_proj": [queries, hidden],
        "self_attn.k_proj": [keys, hidden],
        "self_attn.v_proj": [keys, hidden],
        "self_attn.o_proj": [hidden, queries],
        "self_attn.q_norm": [head],
        "self_attn.k_norm": [head],
        "mlp.gate_proj": [feed_forward, hidden],
        "mlp.up_proj": [feed_forward, hidden],
        "mlp.down_proj": [hidden, feed_forward],
    }
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


def test_model_folder_holds_a_hugging_face_model_of_at_most_6_mb() -> None:
    files = {path.name: path.stat().st_size for path in MODEL.iterdir()}
    assert set(files) == MODEL_FILES
    assert sum(files.values()) <= 6_000_000


def test_config_is_a_qwen3_whose_rows_fill_quantization_blocks(config: dict[str, Any]) -> None:
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["tie_word_embeddings"] is True
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["hidden_size"] % 256 == 0
    assert config["intermediate_size"] % 256 == 0


def test_every_tensor_is_bf16_and_of_the_shape_the_config_gives(
    tensors: dict[str, Any], config: dict[str, Any]
) -> None:
    assert {name: entry["shape"] for name, entry in tensors.items()} == expected_shapes(config)
    assert {entry["dtype"] for entry in tensors.values()} == {"BF16"}


def test_tensor_data_fills_the_file_without_gaps(tensors: dict[str, Any]) -> None:
    end = 0
    for entry in sorted(tensors.values(), key=lambda entry: entry["data_offsets"][0]):
        start, stop = entry["data_offsets"]
        assert start == end
        assert stop - start == 2 * math.prod(entry["shape"])
        end = stop
    with (MODEL / "model.safetensors").open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    assert (MODEL / "model.safetensors").stat().st_size == 8 + header + end


def test_parameter_count_is_that_of_config_and_metrics(
    tensors: dict[str, Any], config: dict[str, Any], metrics: dict[str, Any]
) -> None:
    stored = sum(math.prod(entry["shape"]) for entry in tensors.values())
    assert stored == sum(math.prod(shape) for shape in expected_shapes(config).values())
    assert stored == metrics["parameters"]
    assert 2_500_000 <= stored <= 3_300_000


def test_tokenizer_is_byte_level_bpe_of_the_model_vocabulary(config: dict[str, Any]) -> None:
    tokenizer = read_json(MODEL / "tokenizer.json")
    vocabulary = tokenizer["model"]["vocab"]
    assert tokenizer["model"]["type"] == "BPE"
    assert sorted(vocabulary.values()) == list(range(config["vocab_size"]))
    assert vocabulary["<|endoftext|>"] == config["eos_token_id"]
    # ByteLevel gives each of the 256 bytes one character: with all of them no text is unknown.
    assert sum(len(token) == 1 for token in vocabulary) == 256


def test_model_beats_the_trigram_on_held_out_text(metrics: dict[str, Any]) -> None:
    for measured in (metrics, metrics["heldout_txt"]):
        assert 1.0 < measured["model_perplexity"] < 0.9 * measured["trigram_perplexity"]


def test_card_states_the_measured_perplexities(metrics: dict[str, Any]) -> None:
    card = (TINY / "MODEL_CARD.md").read_text(encoding="utf-8")
    for measured in (metrics, metrics["heldout_txt"]):
        assert f"{measured['model_perplexity']:.2f}" in card
        assert f"{measured['trigram_perplexity']:.2f}" in card


def test_held_out_text_is_there_and_large_enough_to_measure_on() -> None:
    text = (TINY / "heldout.txt").read_text(encoding="utf-8")
    assert 30_000 <= len(text.encode()) <= 60_000
    assert "<|endoftext|>" not in text
