"""Convert a model folder in the Hugging Face layout to one GGUF file. Runs inside the engine's environment.

`python make_gguf.py --model DIR --format q8_0 --out FILE` prints one JSON object: `{"size_bytes", "tensors",
"kept"}`; `{"refused", "fix"}` and exit status 2 for a model that cannot be converted; `{"full"}` and exit status
3 for a disk without room. Knows the Llama and Qwen3 architectures, not one model: every tensor is looked up in a
table with its shape, so a name that the table lacks is refused rather than dropped. Reads weights through a
memory map, one block of rows at a time.
"""

import argparse
import ctypes
import errno
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

FORMATS = {
    "f32": (Kind.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (Kind.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (Kind.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (Kind.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q6_k": (Kind.Q6_K, gguf.LlamaFileType.MOSTLY_Q6_K),
    "q5_k_m": (Kind.Q5_K, gguf.LlamaFileType.MOSTLY_Q5_K_M),
    "q5_1": (Kind.Q5_1, gguf.LlamaFileType.MOSTLY_Q5_1),
    "q5_0": (Kind.Q5_0, gguf.LlamaFileType.MOSTLY_Q5_0),
    "q4_k_m": (Kind.Q4_K, gguf.LlamaFileType.MOSTLY_Q4_K_M),
    "q4_1": (Kind.Q4_1, gguf.LlamaFileType.MOSTLY_Q4_1),
    "q4_0": (Kind.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
K_QUANTS = {Kind.Q6_K: Kind.Q8_0, Kind.Q5_K: Kind.Q5_1, Kind.Q4_K: Kind.Q5_0}
"""Kinds with blocks of 256 that only the engine's own library makes, and what rows of other lengths become."""
FAMILIES = {"LlamaForCausalLM": "llama", "Qwen3ForCausalLM": "qwen3"}
USUAL_YARN = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
SOURCES = {"BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
BLOCK_VALUES = 1 << 24  # values converted at once: 64 MB in float32
MAX_HEADER_BYTES = 100 << 20

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {_LETTERS + r"|\p{N}{1,3}" + _REST: "llama-bpe", _LETTERS + r"|\p{N}" + _REST: "qwen2"}
"""Regular expressions of tokenizers, and llama.cpp's name for each."""


class RefusedError(Exception):
    """The model cannot be converted; `fix` says what would help."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.fix = fix


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        answer = convert(arguments.model, arguments.format, arguments.out)
    except RefusedError as refusal:
        print(json.dumps({"refused": str(refusal), "fix": refusal.fix}))
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(json.dumps({"full": str(arguments.out)}))
        return 3
    print(json.dumps(answer))
    return 0


def convert(folder: Path, form: str, out: Path) -> dict[str, Any]:
    """Write `out`; names, shapes and tokenizer are refused before its first byte, values as they are read."""
    model = Model.read(folder)
    stored = open_tensors(folder)
    plan = plan_tensors(model, stored, FORMATS[form][0])
    writer = gguf.GGUFWriter(out, model.family)
    describe(writer, model, form, tied="output.weight" not in {item.name for item in plan})
    describe_tokenizer(writer, folder, model)
    return write(writer, plan, out)


def write(writer: gguf.GGUFWriter, plan: list["Tensor"], out: Path) -> dict[str, Any]:
    """Write what was described, then the tensors. `make_bert_gguf.py` uses it too."""
    for item in plan:
        writer.add_tensor_info(item.name, item.shape, np.dtype(np.float32), item.bytes, raw_dtype=item.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    reserve(writer, plan)
    for item in plan:
        writer.write_tensor_data(quantize(item))
    writer.close()
    kept = {item.name: item.kind.name.lower() for item in plan if len(item.shape) > 1 and item.kept}
    return {"size_bytes": out.stat().st_size, "tensors": len(plan), "kept": kept}


def reserve(writer: gguf.GGUFWriter, plan: list["Tensor"]) -> None:
    """Claim the disk space of all tensors at once: numpy does not say why a write fell short."""
    file = writer.fout[0]
    file.flush()
    os.posix_fallocate(
        file.fileno(), file.tell(), sum(gguf.GGUFWriter.ggml_pad(item.bytes, 32) for item in plan)
    )


@dataclass(frozen=True)
class Model:
    """What `config.json` says, checked."""

    config: dict[str, Any]
    family: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: int
    vocabulary: int

    @classmethod
    def read(cls, folder: Path) -> "Model":
        config = read_json(folder / "config.json")
        architecture = (config.get("architectures") or ["(none)"])[0]
        if architecture not in FAMILIES:
            raise RefusedError(
                f"the architecture {architecture} cannot be converted", f"use one of {', '.join(FAMILIES)}"
            )
        refuse_unknown_features(config)
        try:
            heads, hidden = config["num_attention_heads"], config["hidden_size"]
            return cls(
                config=config,
                family=FAMILIES[architecture],
                hidden=hidden,
                heads=heads,
                kv_heads=config.get("num_key_value_heads") or heads,
                head_dim=config.get("head_dim") or hidden // heads,
                layers=config["num_hidden_layers"],
                vocabulary=config["vocab_size"],
            )
        except KeyError as missing:
            raise RefusedError(f"config.json lacks {missing}", "take the whole model folder") from None

    @property
    def rope(self) -> dict[str, Any]:
        """Rotary settings: `rope_parameters` since transformers 5, `rope_theta` and `rope_scaling` before."""
        new = self.config.get("rope_parameters") or {}
        old = self.config.get("rope_scaling") or {}
        theta = new.get("rope_theta") or self.config.get("rope_theta") or 10000.0
        kind = new.get("rope_type") or old.get("rope_type") or old.get("type") or "default"
        return {**old, **new, "rope_theta": float(theta), "rope_type": kind}


def refuse_unknown_features(config: dict[str, Any]) -> None:
    """What llama.cpp would silently compute otherwise than the model was trained."""
    wrong = {
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "quantization_config": bool(config.get("quantization_config")),
        "use_sliding_window": bool(config.get("use_sliding_window")),
        "partial_rotary_factor": config.get("partial_rotary_factor", 1.0) != 1.0,
    }
    for key, found in wrong.items():
        if found:
            value = json.dumps(config[key])[:80]
            raise RefusedError(
                f"config.json: {key} = {value} cannot be converted", "use an unquantized Llama or Qwen3"
            )


# --- tensors -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tensor:
    """One tensor of the GGUF file and where its values come from.

    `order` rearranges rows; `kept` says that it stays in a wider kind than the file's own.
    """

    name: str
    kind: Kind
    kept: bool
    values: np.ndarray[Any, Any]
    bfloat16: bool = False
    order: np.ndarray[Any, Any] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def rows_columns(self) -> tuple[int, int]:
        return (1, self.shape[0]) if len(self.shape) == 1 else (self.shape[0], self.shape[1])

    @property
    def bytes(self) -> int:
        rows, columns = self.rows_columns
        return rows * bytes_per_row(columns, self.kind)


def expected_tensors(model: Model) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Each name in the source -> its name in GGUF and its shape, required ones only."""
    hidden, feed = model.hidden, model.config["intermediate_size"]
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    table = {
        "model.embed_tokens.weight": ("token_embd.weight", (model.vocabulary, hidden)),
        "model.norm.weight": ("output_norm.weight", (hidden,)),
    }
    if not model.config.get("tie_word_embeddings", False):
        table["lm_head.weight"] = ("output.weight", (model.vocabulary, hidden))
    for layer in range(model.layers):
        ours = {
            "input_layernorm": ("attn_norm", (hidden,)),
            "post_attention_layernorm": ("ffn_norm", (hidden,)),
            "self_attn.q_proj": ("attn_q", (queries, hidden)),
            "self_attn.k_proj": ("attn_k", (keys, hidden)),
            "self_attn.v_proj": ("attn_v", (keys, hidden)),
            "self_attn.o_proj": ("attn_output", (hidden, queries)),
            "mlp.gate_proj": ("ffn_gate", (feed, hidden)),
            "mlp.up_proj": ("ffn_up", (feed, hidden)),
            "mlp.down_proj": ("ffn_down", (hidden, feed)),
        }
        if model.family == "qwen3":
            ours["self_attn.q_norm"] = ("attn_q_norm", (model.head_dim,))
            ours["self_attn.k_norm"] = ("attn_k_norm", (model.head_dim,))
        for theirs, (name, shape) in ours.items():
            table[f"model.layers.{layer}.{theirs}.weight"] = (f"blk.{layer}.{name}.weight", shape)
            if theirs in biased(model):
                table[f"model.layers.{layer}.{theirs}.bias"] = (f"blk.{layer}.{name}.bias", shape[:1])
    return table


def biased(model: Model) -> set[str]:
    """Projections with a bias; llama.cpp's Qwen3 has none."""
    names: set[str] = set()
    if model.config.get("attention_bias"):
        names |= {f"self_attn.{letter}_proj" for letter in "qkvo"}
    if model.config.get("mlp_bias"):
        names |= {f"mlp.{part}_proj" for part in ("gate", "up", "down")}
    if names and model.family != "llama":
        raise RefusedError(
            f"a {model.family} model with biases cannot be converted", "use a model without biases"
        )
    return names


def plan_tensors(model: Model, stored: dict[str, "Stored"], kind: Kind) -> list[Tensor]:
    """Every tensor of the file, in order. Refuses unknown, missing and misshapen ones."""
    expected = expected_tensors(model)
    ignored = {"lm_head.weight"} if "lm_head.weight" not in expected else set()
    for name in stored:
        if name not in expected and name not in ignored and not name.endswith("rotary_emb.inv_freq"):
            raise RefusedError(
                f"the tensor {name} is not part of a {model.family} model",
                "check `architectures` in config.json",
            )
    plan = []
    for source, (name, shape) in expected.items():
        found = stored.get(source)
        if found is None:
            raise RefusedError(f"the tensor {source} is missing", "stage the model again")
        if found.values.shape != shape:
            raise RefusedError(
                f"the tensor {source} has the shape {found.values.shape}, config.json says {shape}",
                "take config.json and weights from the same model",
            )
        chosen = kind_for(name, shape, kind, layers=model.layers, tied="lm_head.weight" not in expected)
        plan.append(
            Tensor(name, chosen, chosen != kind, found.values, found.bfloat16, order=row_order(model, name))
        )
    if (factors := rope_factors(model)) is not None:
        plan.append(Tensor("rope_freqs.weight", Kind.F32, True, factors))
    return plan


def kind_for(name: str, shape: tuple[int, ...], kind: Kind, *, layers: int, tied: bool) -> Kind:
    """What one tensor is stored as. `tasks/quantization/sizes.py` predicts by the same rules.

    Vectors stay in 32 bits. The output layer decides every token and is damaged most by few bits; llama.cpp's own
    tool spares it too, and as its Q4_K_M and Q5_K_M do, half of the value and down projections get 6 bits.
    Rows that do not divide into a kind's blocks get the next wider kind that they divide into.
    """
    if len(shape) == 1:
        return Kind.F32
    few_bits = kind not in (Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0)
    if few_bits and name == ("token_embd.weight" if tied else "output.weight"):
        kind = Kind.Q6_K if kind in K_QUANTS else Kind.Q8_0
    elif kind in (Kind.Q4_K, Kind.Q5_K) and spared(name, layers):
        kind = Kind.Q6_K
    if kind in K_QUANTS and shape[-1] % 256:
        kind = K_QUANTS[kind]
    return Kind.F16 if gguf.GGML_QUANT_SIZES[kind][0] > 1 and shape[-1] % 32 else kind


def spared(name: str, layers: int) -> bool:
    """Whether a K-quant mixture gives this tensor more bits: the first and last eighth, and every third between."""
    _, layer, part, *_ = [*name.split("."), "", "", ""]
    if part not in ("attn_v", "ffn_down"):
        return False
    number, eighth = int(layer), layers // 8
    return number < eighth or number >= 7 * layers // 8 or (number - eighth) % 3 == 2


def row_order(model: Model, name: str) -> np.ndarray[Any, Any] | None:
    """Llama's rotary pairs are neighbours in GGUF and half a head apart in Hugging Face's layout."""
    heads = {"attn_q": model.heads, "attn_k": model.kv_heads}.get(name.split(".")[-2])
    if model.family != "llama" or heads is None:
        return None
    rows = np.arange(heads * model.head_dim)
    return rows.reshape(heads, 2, model.head_dim // 2).swapaxes(1, 2).reshape(-1)


def rope_factors(model: Model) -> np.ndarray[Any, Any] | None:
    """Llama 3's frequency-dependent scaling, one divisor for each rotary pair."""
    rope = model.rope
    if rope["rope_type"] != "llama3":
        return None
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    old = rope["original_max_position_embeddings"]
    frequency = rope["rope_theta"] ** -(np.arange(0, model.head_dim, 2) / model.head_dim)
    smooth = np.clip((old * frequency / (2 * math.pi) - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def bytes_per_row(columns: int, kind: Kind) -> int:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return columns // block * size


def quantize(item: Tensor) -> np.ndarray[Any, Any]:
    """The tensor's bytes, made block by block of rows so that its float32 form is never whole in memory."""
    rows, columns = item.rows_columns
    order = item.order
    if order is not None and rows == 1:  # a bias: its values are what a matrix has as rows
        data, order = item.values[order].reshape(rows, columns), None
    else:
        data = item.values.reshape(rows, columns)
    out = np.empty((rows, bytes_per_row(columns, item.kind)), np.uint8)
    step = max(1, BLOCK_VALUES // columns)
    for start in range(0, rows, step):
        part = data[start : start + step] if order is None else data[order[start : start + step]]
        values = np.ascontiguousarray(as_float32(part, item.bfloat16))
        if not np.isfinite(values).all():
            raise RefusedError(
                f"the tensor {item.name} contains values that are not numbers", "stage the model again"
            )
        if item.kind == Kind.F16 and np.abs(values).max(initial=0) > 65504:
            raise RefusedError(
                f"the tensor {item.name} contains values beyond 16-bit floats", "use the format f32"
            )
        if item.kind in K_QUANTS:
            quantize_by_library(values, item.kind, out[start : start + step])
        else:
            done = np.ascontiguousarray(gguf.quants.quantize(values, item.kind))
            out[start : start + step] = done.view(np.uint8)
    return out


def quantize_by_library(values: np.ndarray[Any, Any], kind: Kind, out: np.ndarray[Any, Any]) -> None:
    """`ggml_quantize_chunk` of the library that will serve the file: numpy has no way to make K-quants."""
    import xllamacpp  # 100 MB that other kinds need not load

    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    rows, columns = values.shape
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    written = library.ggml_quantize_chunk(
        ctypes.c_int(kind), pointer(values.ctypes.data), pointer(out.ctypes.data),
        size(0), size(rows), size(columns), pointer(None),
    )  # fmt: skip
    if written != out.nbytes:
        raise RuntimeError(f"the engine's library wrote {written} bytes of {kind.name}, not {out.nbytes}")


def as_float32(part: np.ndarray[Any, Any], bfloat16: bool) -> np.ndarray[Any, Any]:
    """bfloat16 is the upper half of a float32."""
    return (part.astype(np.uint32) << 16).view(np.float32) if bfloat16 else part.astype(np.float32)


@dataclass(frozen=True)
class Stored:
    """One tensor in a safetensors file, memory-mapped."""

    values: np.ndarray[Any, Any]
    bfloat16: bool


def open_tensors(folder: Path, without: str = "") -> dict[str, Stored]:
    """All tensors of the folder by name, but those whose name ends in `without`."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = sorted(set(read_json(index).get("weight_map", {}).values()))
    else:
        files = sorted(path.name for path in folder.glob("*.safetensors"))
    if not files:
        raise RefusedError(
            f"{folder} contains no safetensors file", "stage a model in the safetensors format"
        )
    tensors: dict[str, Stored] = {}
    for name in files:
        if Path(name).name != name:
            raise RefusedError(
                f"{index.name} names the file {name!r} outside its folder", "stage the model again"
            )
        tensors |= dict(read_safetensors(folder / name, without))
    return tensors


def read_safetensors(path: Path, without: str = "") -> Iterator[tuple[str, Stored]]:
    """Format: 8 bytes of header length, little-endian; a JSON header; the data."""
    damaged = RefusedError(f"{path.name} is damaged or cut short", "stage the model again")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(size - 8, MAX_HEADER_BYTES):
                raise damaged
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        entries = [(name, e["dtype"], tuple(e["shape"]), *e["data_offsets"]) for name, e in header.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise damaged from None
    for name, stored_as, shape, start, end in entries:
        if without and name.endswith(without):
            continue
        dtype = SOURCES.get(stored_as)
        if dtype is None:
            raise RefusedError(
                f"the tensor {name} is stored as {stored_as}", f"use a model in {', '.join(SOURCES)}"
            )
        if end - start != math.prod(shape) * dtype.itemsize or not 0 <= start <= end <= size - 8 - length:
            raise damaged
        values = np.memmap(path, dtype, "r", 8 + length + start, shape)
        yield name, Stored(values, stored_as == "BF16")


# --- metadata ----------------------------------------------------------------------------------------------


def describe(writer: gguf.GGUFWriter, model: Model, form: str, *, tied: bool) -> None:
    """The architecture's sizes, under the names that llama.cpp reads."""
    config, rope = model.config, model.rope
    writer.add_name(f"{model.family}-{form}")
    writer.add_file_type(FORMATS[form][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(model.hidden)
    writer.add_block_count(model.layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_vocab_size(model.vocabulary)
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-6))
    writer.add_rope_dimension_count(model.head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    describe_scaling(writer, rope)


def describe_scaling(writer: gguf.GGUFWriter, rope: dict[str, Any]) -> None:
    """Longer contexts than trained: linear and YaRN are settings, Llama 3's way is a tensor."""
    if rope["rope_type"] in ("default", "llama3"):
        return
    kinds = {"linear": gguf.RopeScalingType.LINEAR, "yarn": gguf.RopeScalingType.YARN}
    if rope["rope_type"] not in kinds:
        raise RefusedError(
            f"config.json: rope scaling {rope['rope_type']} cannot be converted",
            f"use {', '.join(kinds)} or llama3",
        )
    writer.add_rope_scaling_type(kinds[rope["rope_type"]])
    writer.add_rope_scaling_factor(rope["factor"])
    if "original_max_position_embeddings" in rope:
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "yarn":
        describe_yarn(writer, rope)


def describe_yarn(writer: gguf.GGUFWriter, rope: dict[str, Any]) -> None:
    """What of YaRN differs from its usual settings.

    llama.cpp multiplies queries and keys by `attn_factor` times 1 + 0.1 ln(factor) (llama-context.cpp), so that is
    divided out of the factor that Transformers computes (`_compute_yarn_parameters`). vLLM also knows `attn_factor`,
    as DeepSeek-R1-0528-Qwen3-8B has it, and multiplies by it as llama.cpp does.
    """
    for key, usual in USUAL_YARN.items():  # llama.cpp reads none of them for these families
        if rope.get(key) not in (None, usual):
            raise RefusedError(
                f"config.json: rope scaling yarn with {key} = {json.dumps(rope[key])[:40]} cannot be converted",
                f"use a model with {json.dumps(usual)}, or an engine that loads folders",
            )
    usual = magnitude(rope["factor"], 1.0)
    wanted = rope.get("attention_factor")
    if wanted is None and rope.get("mscale") and rope.get("mscale_all_dim"):
        wanted = magnitude(rope["factor"], rope["mscale"]) / magnitude(rope["factor"], rope["mscale_all_dim"])
    factor = (usual if wanted is None else wanted) / usual * rope.get("attn_factor", 1.0)
    if factor != 1.0:
        writer.add_rope_scaling_attn_factors(factor)


def magnitude(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def describe_tokenizer(writer: gguf.GGUFWriter, folder: Path, model: Model) -> None:
    """A byte-level BPE vocabulary, its merges and its special tokens."""
    tokenizer = read_json(folder / "tokenizer.json")
    words: dict[str, int] = dict(tokenizer["model"].get("vocab") or {})
    kinds = dict.fromkeys(words.values(), NORMAL)
    name = pre_tokenizer_name(tokenizer)
    for token in tokenizer.get("added_tokens", []):
        words[token["content"]] = token["id"]
        kinds[token["id"]] = CONTROL if token.get("special") else USER_DEFINED
    by_id = {number: word for word, number in words.items()}
    if max(by_id) >= model.vocabulary:
        raise RefusedError(
            f"the tokenizer has {max(by_id) + 1} tokens, the model {model.vocabulary}",
            "take tokenizer.json and weights from the same model",
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    # Embedding matrices are padded to a round number of rows: those beyond the vocabulary get names of their own.
    writer.add_token_list([by_id.get(number, f"[PAD{number}]") for number in range(model.vocabulary)])
    writer.add_token_types([kinds.get(number, UNUSED) for number in range(model.vocabulary)])
    merges = tokenizer["model"].get("merges") or []
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in merges] or [""]
    )
    describe_special_tokens(writer, folder, model, tokenizer, words)


def pre_tokenizer_name(tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name for how text is cut before merging. Refuses what it would cut otherwise."""
    kind = tokenizer.get("model", {}).get("type")
    fix = "use a byte-level BPE tokenizer cut like GPT-2, Llama 3 or Qwen"
    if kind != "BPE" or tokenizer["model"].get("byte_fallback"):
        raise RefusedError(f"the tokenizer kind {kind} is not a byte-level BPE", fix)
    normalizer = (tokenizer.get("normalizer") or {}).get("type")
    if normalizer not in (None, "NFC"):
        raise RefusedError(f"the tokenizer's normalizer {normalizer} cannot be converted", fix)
    pre = tokenizer.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", []) if pre.get("type") == "Sequence" else [pre]
    types = [step.get("type") for step in steps]
    if any(step.get("add_prefix_space") for step in steps):
        raise RefusedError("the tokenizer adds a space before the text", fix)
    if types == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if types == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if types == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        pattern = steps[0].get("pattern", {}).get("Regex")
        if pattern in SPLITS:
            return SPLITS[pattern]
    raise RefusedError(f"the pre-tokenizer {json.dumps(pre)[:120]} is not known", fix)


def describe_special_tokens(
    writer: gguf.GGUFWriter, folder: Path, model: Model, tokenizer: dict[str, Any], words: dict[str, int]
) -> None:
    """Beginning and end of text, whether the former is put before every prompt, and the chat template."""
    settings = read_json(folder / "tokenizer_config.json", default={})
    add: dict[str, Callable[[int], None]] = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "pad": writer.add_pad_token_id,
    }
    for role, write in add.items():
        word = settings.get(f"{role}_token")
        word = word.get("content") if isinstance(word, dict) else word
        number = words.get(word) if word else model.config.get(f"{role}_token_id")
        number = number[0] if isinstance(number, list) and number else number
        if isinstance(number, int) and 0 <= number < model.vocabulary:
            write(number)
    writer.add_add_bos_token(adds_beginning(tokenizer, settings))
    template_file = folder / "chat_template.jinja"
    if template_file.exists():
        template: Any = template_file.read_text()
    else:
        template = settings.get("chat_template")
        template = template or read_json(folder / "chat_template.json", default={}).get("chat_template")
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    if template:
        writer.add_chat_template(template)  # of a list, the one named `default` is the file's own


def adds_beginning(tokenizer: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether prompts begin with a special token: what tokenizer.json does, or else what is declared."""
    processor = tokenizer.get("post_processor") or {}
    for step in processor.get("processors", [processor]):
        if step.get("type") == "TemplateProcessing":
            return "SpecialToken" in (step.get("single") or [{}])[0]
    return bool(settings.get("add_bos_token", False))


def read_json(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    if default is not None and not path.exists():
        return default
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        raise RefusedError(f"{path.name} is missing or not JSON", "take the whole model folder") from None
    if not isinstance(value, dict):
        raise RefusedError(f"{path.name} is not a JSON object", "take the whole model folder")
    return value


if __name__ == "__main__":
    sys.exit(main())
