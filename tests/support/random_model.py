"""Small models with random weights, in the Hugging Face layout: for tests that need no sense in answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from plain_safetensors import Plain, read_plain, write_plain

from tasks.core.model_shape import read_model_config
from tasks.quantization.sizes import Source
from tasks.quantization.source import read_source

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, LAYERS = 128, 4, 2, 32, 256, 2
END_OF_TEXT = "<|endoftext|>"


def write_random_model(folder: Path, *, family: str = "qwen3", seed: int = 0, shards: int = 1) -> Path:
    """A Llama or Qwen3 model of about 0.4 M parameters in bfloat16; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _write_tokenizer(folder)
    _write_config(folder, family, vocabulary)
    tensors = _random_tensors(family, vocabulary, np.random.default_rng(seed))
    names = sorted(tensors)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return folder
    index: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        write_safetensors(folder / file, part)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def source_of(folder: Path) -> Source:
    """What the size of a model's candidates depends on."""
    return read_source(folder, read_model_config(folder))


def write_safetensors(path: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    """`tensors` hold bfloat16 as its 16 bits (`uint16`)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.tobytes())


def _write_config(folder: Path, family: str, vocabulary: int) -> None:
    config: dict[str, Any] = {
        "architectures": [{"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}[family]],
        "model_type": family,
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": vocabulary,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "bos_token_id": vocabulary - 1,
        "eos_token_id": vocabulary - 1,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def _write_tokenizer(folder: Path) -> int:
    """A byte-level BPE without merges: one token per byte, and the end of text."""
    vocabulary = {letter: index for index, letter in enumerate(_byte_letters())}
    size = len(vocabulary)
    vocabulary[END_OF_TEXT] = size
    added = {"id": size, "content": END_OF_TEXT, "special": True, "normalized": False}
    added |= {"single_word": False, "lstrip": False, "rstrip": False}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [added],
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT})
    )
    return size + 1


def _byte_letters() -> list[str]:
    """GPT-2's printable letter for each byte, in byte order."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    letters, extra = [], 0
    for byte in range(256):
        if byte in printable:
            letters.append(chr(byte))
        else:
            letters.append(chr(256 + extra))
            extra += 1
    return letters


def _random_tensors(
    family: str, vocabulary: int, random: np.random.Generator
) -> dict[str, np.ndarray[Any, Any]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        attention = prefix + "self_attn."
        shapes |= {
            prefix + "input_layernorm.weight": (HIDDEN,),
            prefix + "post_attention_layernorm.weight": (HIDDEN,),
            attention + "q_proj.weight": (HEADS * HEAD_DIM, HIDDEN),
            attention + "k_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            attention + "v_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            attention + "o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
            prefix + "mlp.gate_proj.weight": (FFN, HIDDEN),
            prefix + "mlp.up_proj.weight": (FFN, HIDDEN),
            prefix + "mlp.down_proj.weight": (HIDDEN, FFN),
        }
        if family == "qwen3":
            shapes |= {attention + "q_norm.weight": (HEAD_DIM,), attention + "k_norm.weight": (HEAD_DIM,)}
    shapes["model.norm.weight"] = (HIDDEN,)
    return {name: _bfloat16(_values(shape, random)) for name, shape in shapes.items()}


def _values(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray[Any, Any]:
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    return (random.standard_normal(shape) * 0.08).astype(np.float32)


def _bfloat16(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def rewrite_model(
    folder: Path,
    *,
    dtype: str = "BF16",
    config: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray[Any, Any] | None] | None = None,
) -> Path:
    """Change a one-file model: element type, keys of config.json, and tensors (None takes one away)."""
    path = folder / "model.safetensors"
    values: dict[str, np.ndarray[Any, Any] | None] = {**read_floats(path), **(tensors or {})}
    kept = {name: value for name, value in values.items() if value is not None}
    write_plain(path, {name: _encode(value, dtype) for name, value in kept.items()})
    settings = json.loads((folder / "config.json").read_text()) | (config or {})
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def read_floats(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """All tensors of a file as 32-bit floats."""
    return {name: _decode(plain) for name, plain in read_plain(path).items()}


def _decode(plain: Plain) -> np.ndarray[Any, Any]:
    dtype, shape, content = plain
    if dtype == "BF16":
        return (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return np.frombuffer(content, {"F16": "<f2", "F32": "<f4"}[dtype]).astype(np.float32).reshape(shape)


def _encode(values: np.ndarray[Any, Any], dtype: str) -> Plain:
    single = np.ascontiguousarray(values, np.float32)
    stored = _bfloat16(single) if dtype == "BF16" else single.astype({"F16": "<f2", "F32": "<f4"}[dtype])
    return dtype, values.shape, stored.tobytes()
