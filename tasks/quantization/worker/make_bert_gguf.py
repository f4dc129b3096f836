"""Convert a BERT model folder in the Hugging Face layout to one GGUF file. Runs inside the engine's environment.

`python make_bert_gguf.py --model DIR --format f16 --out FILE --pooling mean` answers as `make_gguf.py`, which it
shares its reading and writing of tensors with. `--pooling rank` is for a cross-encoder, which scores a pair of texts.
"""

import argparse
import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

_spec = importlib.util.spec_from_file_location("make_gguf", Path(__file__).with_name("make_gguf.py"))
assert _spec is not None
assert _spec.loader is not None
maker = importlib.util.module_from_spec(_spec)
sys.modules["make_gguf"] = maker  # its dataclasses look their module up there
_spec.loader.exec_module(maker)

RefusedError = maker.RefusedError
POOLING = {
    "mean": gguf.PoolingType.MEAN,
    "cls": gguf.PoolingType.CLS,
    "last": gguf.PoolingType.LAST,
    "rank": gguf.PoolingType.RANK,
}
EMBEDDER, RANKER = "BertModel", "BertForSequenceClassification"
POSITIONS = "embeddings.position_ids"
"""Whole numbers from 0 on, which older models carry along."""
NOT_USED = ("pooler.dense.weight", "pooler.dense.bias")
"""A layer that only classifiers use."""
SPECIAL = {"cls": "bos", "sep": "eos", "unk": "unk", "pad": "pad", "mask": "mask"}
"""Special tokens of BERT, and llama.cpp's name for each."""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pooling", choices=POOLING, required=True)
    arguments, rest = parser.parse_known_args()

    def convert(folder: Path, form: str, out: Path) -> dict[str, Any]:
        return convert_bert(folder, form, out, arguments.pooling)

    maker.convert = convert
    sys.argv = [sys.argv[0], *rest]
    return int(maker.main())


def convert_bert(folder: Path, form: str, out: Path, pooling: str) -> dict[str, Any]:
    """Write `out`; everything but values is checked before its first byte."""
    model = Bert.read(folder, pooling)
    plan = plan_tensors(model, maker.open_tensors(folder, POSITIONS), maker.FORMATS[form][0])
    writer = gguf.GGUFWriter(out, "bert")
    describe(writer, model, form, pooling)
    describe_tokenizer(writer, folder, model)
    return dict(maker.write(writer, plan, out))


@dataclass(frozen=True)
class Bert:
    """What `config.json` says, checked."""

    config: dict[str, Any]
    ranks: bool

    @classmethod
    def read(cls, folder: Path, pooling: str) -> "Bert":
        config = maker.read_json(folder / "config.json")
        wanted = RANKER if pooling == "rank" else EMBEDDER
        architecture = (config.get("architectures") or ["(none)"])[0]
        if architecture != wanted:
            raise RefusedError(
                f"the architecture {architecture} cannot be converted for pooling {pooling}", f"use {wanted}"
            )
        model = cls(config, ranks=wanted == RANKER)
        model.refuse_unknown_features()
        return model

    def refuse_unknown_features(self) -> None:
        """What llama.cpp would silently compute otherwise than the model was trained."""
        config = self.config
        wrong = {
            "hidden_act": config.get("hidden_act", "gelu") != "gelu",
            "position_embedding_type": config.get("position_embedding_type", "absolute") != "absolute",
            "quantization_config": bool(config.get("quantization_config")),
            # llama.cpp gives both texts of a pair the type of the first.
            "type_vocab_size": self.ranks and config.get("type_vocab_size", 2) != 1,
        }
        for key, found in wrong.items():
            if found:
                value = json.dumps(config.get(key, 2))[:80]
                raise RefusedError(
                    f"config.json: {key} = {value} cannot be converted"
                    + (", llama.cpp does not tell the texts of a pair apart" if "type" in key else ""),
                    "use an engine that loads folders: engine: vllm",
                )
        if self.ranks and self.labels != 1:
            raise RefusedError(f"the model has {self.labels} labels, a ranker has one", "use a cross-encoder")

    @property
    def labels(self) -> int:
        named = self.config.get("id2label")
        return len(named) if isinstance(named, dict) else int(self.config.get("num_labels", 2))

    def size(self, key: str) -> int:
        if not isinstance(value := self.config.get(key), int):
            raise RefusedError(f"config.json lacks {key}", "take the whole model folder")
        return value


def expected_tensors(model: Bert) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Each name in the source -> its name in GGUF and its shape."""
    hidden, feed = model.size("hidden_size"), model.size("intermediate_size")
    table = {
        "embeddings.word_embeddings.weight": ("token_embd.weight", (model.size("vocab_size"), hidden)),
        "embeddings.position_embeddings.weight": (
            "position_embd.weight",
            (model.size("max_position_embeddings"), hidden),
        ),
        "embeddings.token_type_embeddings.weight": (
            "token_types.weight",
            (model.config.get("type_vocab_size", 2), hidden),
        ),
        **both("embeddings.LayerNorm", "token_embd_norm", (hidden,)),
    }
    for layer in range(model.size("num_hidden_layers")):
        ours = {
            "attention.self.query": ("attn_q", (hidden, hidden)),
            "attention.self.key": ("attn_k", (hidden, hidden)),
            "attention.self.value": ("attn_v", (hidden, hidden)),
            "attention.output.dense": ("attn_output", (hidden, hidden)),
            "attention.output.LayerNorm": ("attn_output_norm", (hidden,)),
            "intermediate.dense": ("ffn_up", (feed, hidden)),
            "output.dense": ("ffn_down", (hidden, feed)),
            "output.LayerNorm": ("layer_output_norm", (hidden,)),
        }
        for theirs, (name, shape) in ours.items():
            table |= both(f"encoder.layer.{layer}.{theirs}", f"blk.{layer}.{name}", shape)
    if model.ranks:
        table |= both("pooler.dense", "cls", (hidden, hidden))
        table |= both("classifier", "cls.output", (1, hidden))
    return table


def both(theirs: str, ours: str, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """A layer's weight and bias."""
    return {
        f"{theirs}.weight": (f"{ours}.weight", shape),
        f"{theirs}.bias": (f"{ours}.bias", shape[:1]),
    }


def plan_tensors(model: Bert, stored: dict[str, Any], kind: Any) -> list[Any]:
    """Every tensor of the file, in order. Refuses unknown, missing and misshapen ones."""
    expected = expected_tensors(model)
    found = {name.removeprefix("bert."): tensor for name, tensor in stored.items()}
    for name in found:
        if name not in expected and name not in NOT_USED:
            raise RefusedError(
                f"the tensor {name} is not part of a BERT model", "check `architectures` in config.json"
            )
    plan = []
    for source, (name, shape) in expected.items():
        tensor = found.get(source)
        if tensor is None:
            raise RefusedError(f"the tensor {source} is missing", "stage the model again")
        if tensor.values.shape != shape:
            raise RefusedError(
                f"the tensor {source} has the shape {tensor.values.shape}, config.json says {shape}",
                "take config.json and weights from the same model",
            )
        chosen = kind_for(name, shape, kind, model)
        plan.append(maker.Tensor(name, chosen, chosen != kind, tensor.values, tensor.bfloat16))
    return plan


def kind_for(name: str, shape: tuple[int, ...], kind: Any, model: Bert) -> Any:
    """As `make_gguf.kind_for`. What is added to each token is small, and llama.cpp adds it in 32 bits; so is the head
    that gives a score."""
    if name.startswith(("position_embd", "token_types", "cls")):
        return maker.Kind.F32
    return maker.kind_for(name, shape, kind, layers=model.size("num_hidden_layers"), tied=True)


def describe(writer: gguf.GGUFWriter, model: Bert, form: str, pooling: str) -> None:
    """The architecture's sizes, under the names that llama.cpp reads."""
    writer.add_name(f"bert-{form}")
    writer.add_file_type(maker.FORMATS[form][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(model.size("max_position_embeddings"))
    writer.add_embedding_length(model.size("hidden_size"))
    writer.add_block_count(model.size("num_hidden_layers"))
    writer.add_feed_forward_length(model.size("intermediate_size"))
    writer.add_head_count(model.size("num_attention_heads"))
    writer.add_layer_norm_eps(model.config.get("layer_norm_eps", 1e-12))
    writer.add_causal_attention(False)
    writer.add_pooling_type(POOLING[pooling])
    writer.add_token_type_count(model.config.get("type_vocab_size", 2))
    if model.ranks:
        writer.add_classifier_output_labels(["relevance"])


def describe_tokenizer(writer: gguf.GGUFWriter, folder: Path, model: Bert) -> None:
    """A WordPiece vocabulary: llama.cpp marks where words begin, BERT where they continue."""
    tokenizer = maker.read_json(folder / "tokenizer.json")
    check_wordpiece(tokenizer)
    words: dict[str, int] = dict(tokenizer["model"].get("vocab") or {})
    special = {
        token["content"]: token["id"] for token in tokenizer.get("added_tokens", []) if token.get("special")
    }
    words |= special
    by_id = {number: word for word, number in words.items()}
    size = model.size("vocab_size")
    if not by_id or max(by_id) >= size:
        raise RefusedError(
            f"the tokenizer has {max(by_id, default=-1) + 1} tokens, the model {size}",
            "take tokenizer.json and weights from the same model",
        )
    kinds = dict.fromkeys(by_id, maker.NORMAL) | dict.fromkeys(special.values(), maker.CONTROL)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([spelled(by_id.get(number, f"[PAD{number}]")) for number in range(size)])
    writer.add_token_types([kinds.get(number, maker.UNUSED) for number in range(size)])
    settings = maker.read_json(folder / "tokenizer_config.json", default={})
    for role, name in SPECIAL.items():
        word = settings.get(f"{role}_token", f"[{role.upper()}]")
        word = word.get("content") if isinstance(word, dict) else word
        if (number := words.get(word)) is not None:
            getattr(writer, f"add_{name}_token_id")(number)
            if role == "sep":
                writer.add_sep_token_id(number)
        elif role in ("cls", "sep", "unk"):
            raise RefusedError(f"the tokenizer has no {role}_token {word!r}", "take the whole model folder")
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    writer.add_add_sep_token(False)  # between the texts of a pair: one, the end of the first


def check_wordpiece(tokenizer: dict[str, Any]) -> None:
    """Refuse what llama.cpp would cut otherwise: it lowers all letters and drops their accents."""
    kind = (tokenizer.get("model") or {}).get("type")
    normalizer = tokenizer.get("normalizer") or {}
    fix = "use an uncased BERT, or an engine that loads folders: engine: vllm"
    if kind != "WordPiece" or tokenizer["model"].get("continuing_subword_prefix", "##") != "##":
        raise RefusedError(f"the tokenizer kind {kind} is not BERT's WordPiece", fix)
    if normalizer.get("type") != "BertNormalizer" or not normalizer.get("lowercase"):
        raise RefusedError("the tokenizer keeps capital letters, which llama.cpp would lower", fix)
    if normalizer.get("strip_accents") is False:
        raise RefusedError("the tokenizer keeps accents, which llama.cpp would drop", fix)


def spelled(word: str) -> str:
    """The word as llama.cpp's vocabulary has it."""
    if word.startswith("[") and word.endswith("]"):
        return word
    return word[2:] if word.startswith("##") else f"\N{LOWER ONE EIGHTH BLOCK}{word}"


if __name__ == "__main__":
    sys.exit(main())
