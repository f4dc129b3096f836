"""Small BERT models with random weights, in the layout that sentence-transformers writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from plain_safetensors import Plain, write_plain

HIDDEN, HEADS, FEED, LAYERS, CONTEXT = 32, 4, 64, 2, 128
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORDS = "the a ship lies at quay pilot reads tide crane lifts crate wind turns north harbour is closed . , ?"
VOCABULARY = (*_SPECIAL, *_WORDS.split(), *"abcdefghijklmnopqrstuvwxyz0123456789")
WORDS = (*VOCABULARY, *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"))


def write_bert(folder: Path, *, ranks: bool = False, pooling: str | None = "mean", types: int = 1) -> Path:
    """An embedding model, or with `ranks` a cross-encoder with one label; returns `folder`.

    `pooling` is what `1_Pooling` says; without it there are no modules. `types` is how many texts of a pair it
    tells apart.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "architectures": ["BertForSequenceClassification" if ranks else "BertModel"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": HIDDEN,
        "intermediate_size": FEED,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": CONTEXT,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "type_vocab_size": types,
        "vocab_size": len(WORDS),
        **({"id2label": {"0": "LABEL_0"}} if ranks else {}),
    }
    (folder / "config.json").write_text(json.dumps(config))
    _write_tokenizer(folder)
    if pooling and not ranks:
        modules = [
            {"path": "", "type": "sentence_transformers.models.Transformer"},
            {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir(exist_ok=True)
        key = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken", "max": "max_tokens"}[pooling]
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{key}": True}))
    write_plain(folder / "model.safetensors", _tensors(ranks=ranks, types=types), {"format": "pt"})
    return folder


def _write_tokenizer(folder: Path) -> None:
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    added = [
        {"id": vocabulary[word], "content": word, "special": True, "normalized": False, "single_word": False}
        | {"lstrip": False, "rstrip": False}
        for word in _SPECIAL
    ]
    special = {word: {"id": word, "ids": [vocabulary[word]], "tokens": [word]} for word in ("[CLS]", "[SEP]")}

    def part(kind: str, name: str) -> dict[str, Any]:
        return {kind: {"id": name, "type_id": 0}}

    cls, sep = part("SpecialToken", "[CLS]"), part("SpecialToken", "[SEP]")
    first, second = part("Sequence", "A"), part("Sequence", "B")
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [cls, first, sep],
            "pair": [cls, first, sep, second, sep],
            "special_tokens": special,
        },
        "decoder": None,
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True, **settings})
    )


def _tensors(*, ranks: bool, types: int) -> dict[str, Plain]:
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(WORDS), HIDDEN),
        "embeddings.position_embeddings.weight": (CONTEXT, HIDDEN),
        "embeddings.token_type_embeddings.weight": (types, HIDDEN),
        "embeddings.LayerNorm.weight": (HIDDEN,),
        "embeddings.LayerNorm.bias": (HIDDEN,),
    }
    for layer in range(LAYERS):
        for name, shape in {
            "attention.self.query": (HIDDEN, HIDDEN),
            "attention.self.key": (HIDDEN, HIDDEN),
            "attention.self.value": (HIDDEN, HIDDEN),
            "attention.output.dense": (HIDDEN, HIDDEN),
            "attention.output.LayerNorm": (HIDDEN,),
            "intermediate.dense": (FEED, HIDDEN),
            "output.dense": (HIDDEN, FEED),
            "output.LayerNorm": (HIDDEN,),
        }.items():
            shapes[f"encoder.layer.{layer}.{name}.weight"] = shape
            shapes[f"encoder.layer.{layer}.{name}.bias"] = shape[:1]
    shapes |= {"pooler.dense.weight": (HIDDEN, HIDDEN), "pooler.dense.bias": (HIDDEN,)}
    if ranks:
        shapes = {f"bert.{name}": shape for name, shape in shapes.items()}
        shapes |= {"classifier.weight": (1, HIDDEN), "classifier.bias": (1,)}
    draw = np.random.default_rng(7)
    tensors: dict[str, Plain] = {}
    for name, shape in shapes.items():
        values = draw.normal(0, 0.3, shape).astype("<f4")
        if "LayerNorm.weight" in name:
            values += 1
        tensors[name] = ("F32", shape, values.tobytes())
    position_ids = np.arange(CONTEXT, dtype="<i8")
    prefix = "bert." if ranks else ""
    tensors[f"{prefix}embeddings.position_ids"] = ("I64", (1, CONTEXT), position_ids.tobytes())
    return tensors
