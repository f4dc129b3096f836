"""What a candidate will weigh, from the shapes of the model's tensors, before it is made. Pure.

The rules of which tensor is stored as what are those of `worker/make_gguf.py`; tests compare the two.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tasks.core.model_shape import ModelShape
from tasks.core.model_task import GENERATES, Purpose
from tasks.core.spec_kinds import CandidateFormat
from tasks.core.weight_format import WeightFormat

_BLOCKS = {
    "f32": (1, 4), "f16": (1, 2), "bf16": (1, 2), "q8_0": (32, 34), "q6_k": (256, 210), "q5_k": (256, 176),
    "q5_1": (32, 24), "q5_0": (32, 22), "q4_k": (256, 144), "q4_1": (32, 20), "q4_0": (32, 18),
}  # fmt: skip
"""Values and bytes of one block of each kind (ggml-common.h)."""

_SHORT_ROWS = {"q6_k": "q8_0", "q5_k": "q5_1", "q4_k": "q5_0"}
_WIDE = ("f32", "f16", "bf16", "q8_0")
_ALIGNMENT = 32
_ENTRY_BYTES = 64
_HEAD_BYTES = 1500
_SPARED = re.compile(
    r"(?:model\.layers|(?:bert\.)?encoder\.layer)\.([0-9]+)\."
    r"(?:self_attn\.v_proj|mlp\.down_proj|attention\.self\.value|output\.dense)\.weight"
)
_LEFT_OUT = ("rotary_emb.inv_freq", "embeddings.position_ids")
_HEAD = ("pooler.dense.weight", "classifier.weight")
_ADDED = ("position_embeddings.weight", "token_type_embeddings.weight")
"""Of BERT: the head that gives a score, and what is added to each token, both in 32 bits."""
_OUTPUT = (
    "lm_head.weight",
    "model.embed_tokens.weight",
    "embeddings.word_embeddings.weight",
    "bert.embeddings.word_embeddings.weight",
)


@dataclass(frozen=True)
class Source:
    """The model as it lies in its folder: its sizes, shapes by tensor name, what its vocabulary takes in a GGUF file,
    and the bytes of all other files, which a candidate in a folder takes along as they are.

    Of a model that is served as it comes only its files and their bytes count, and the quantization that they are in;
    of one in a folder also how many bytes its weights take once they are unpacked to 16 bits. `purpose` is what the
    files of a GGUF model say that it is for.
    """

    shape: ModelShape
    shapes: Mapping[str, tuple[int, ...]]
    vocabulary_bytes: int
    beside_bytes: int = 0
    as_is: tuple[str, ...] = ()
    as_is_bytes: int = 0
    stored_as: str | None = None
    purpose: Purpose = GENERATES
    weights: WeightFormat | None = None
    unpacked_bytes: int = 0


def vocabulary_bytes(words: list[str], merges: list[str], rows: int) -> int:
    """Bytes of a vocabulary of `rows` tokens in a GGUF file: text with its length, a number for each token's kind."""
    text = sum(8 + len(word.encode()) for word in words) + sum(8 + len(merge.encode()) for merge in merges)
    return text + (rows - len(words)) * 16 + rows * 4


def file_bytes(source: Source, form: CandidateFormat) -> int:
    """Size of the GGUF file in this format, bytes."""
    tensors = _tensors(source, form)
    return sum(tensors.values()) + len(tensors) * _ENTRY_BYTES + source.vocabulary_bytes + _HEAD_BYTES


def serving_bytes(weights: int, shape: ModelShape, tokens: int) -> int:
    """Least memory that serving takes: the weights, and keys and values of `tokens` tokens, of which layers with a
    window keep only that. Engines take more. If keys and values are not known, only the weights count."""
    return weights + shape.kv_bytes(tokens)


def _tensors(source: Source, form: CandidateFormat) -> dict[str, int]:
    """Bytes of each tensor of the GGUF file."""
    tensors = {name: dims for name, dims in source.shapes.items() if not name.endswith(_LEFT_OUT)}
    if not any(name.endswith("classifier.weight") for name in tensors):  # without it, its pooler is not used
        tensors = {name: dims for name, dims in tensors.items() if "pooler.dense" not in name}
    output = _output_of(tensors)
    return {
        name: _padded(_tensor_bytes(dims, _kind(name, dims, form, source.shape.layers or 0, output)))
        for name, dims in tensors.items()
    }


def _output_of(names: Iterable[str]) -> str:
    known = set(names)
    return next((name for name in _OUTPUT if name in known), "")


def _kind(name: str, dims: tuple[int, ...], form: CandidateFormat, layers: int, output: str) -> str:
    kind = form.value.removesuffix("_m")
    if len(dims) <= 1 or name.endswith((*_HEAD, *_ADDED)):
        return "f32"
    if kind not in _WIDE and name == output:
        kind = "q6_k" if kind in _SHORT_ROWS else "q8_0"
    elif kind in ("q4_k", "q5_k") and _spared(name, layers):
        kind = "q6_k"
    if dims[-1] % 256:
        kind = _SHORT_ROWS.get(kind, kind)
    return "f16" if _BLOCKS[kind][0] > 1 and dims[-1] % 32 else kind


def _spared(name: str, layers: int) -> bool:
    """Whether it is a value or down projection, of the layers in which these get 6 bits."""
    found = _SPARED.fullmatch(name)
    if found is None:
        return False
    number, eighth = int(found[1]), layers // 8
    return number < eighth or number >= 7 * layers // 8 or (number - eighth) % 3 == 2


def _tensor_bytes(dims: tuple[int, ...], kind: str) -> int:
    values, size = _BLOCKS[kind]
    if not dims:  # one value, such as a scale
        return size
    return math.prod(dims[:-1]) * (dims[-1] // values) * size


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
