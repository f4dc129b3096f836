"""What a candidate in a folder will weigh, from the shapes of the model's tensors, before it is made. Pure.

The rules are those of llmcompressor's schemes (all linear layers but the output layer); tests compare the two.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from tasks.core.spec_kinds import CandidateFormat
from tasks.quantization.sizes import Source

_GROUP = 128
"""Values of a row that share a scale in w4a16."""
_WORD_BYTES, _VALUES_IN_WORD = 4, 8
_SCALE_BYTES = 2
_SHAPE_BYTES = 16
_PLAIN_BYTES = 2
"""What is not compressed is kept in 16 bits."""
_ENTRY_BYTES = 100
_CONFIG_BYTES = 2500
_NOT_LINEAR = ("lm_head.weight", "model.embed_tokens.weight")

PLAIN = (CandidateFormat.BF16, CandidateFormat.F16)
"""Formats that need no quantizer."""


def folder_bytes(source: Source, form: CandidateFormat) -> int:
    """Size of all files of the candidate, bytes."""
    total = source.beside_bytes + _CONFIG_BYTES
    for name, dims in source.shapes.items():
        parts = (
            list(_parts(dims, form)) if _is_compressed(name, dims, form) else [math.prod(dims) * _PLAIN_BYTES]
        )
        total += sum(parts) + len(parts) * _ENTRY_BYTES
    return total


def unpacked_bytes(source: Source) -> int:
    """The weights in 16 bits, bytes: what an engine that unpacks them needs."""
    return source.unpacked_bytes or sum(math.prod(dims) * _PLAIN_BYTES for dims in source.shapes.values())


def refuse_shapes(source: Source, form: CandidateFormat) -> str | None:
    """Why a model cannot be made in that format; None if it can."""
    if form is not CandidateFormat.W4A16:
        return None
    ragged = [
        name for name, dims in source.shapes.items() if _is_compressed(name, dims, form) and dims[1] % _GROUP
    ]
    if not ragged:
        return None
    return f"not made: {form} takes rows in groups of {_GROUP} values, but those of {ragged[0]} do not divide evenly"


def _is_compressed(name: str, dims: tuple[int, ...], form: CandidateFormat) -> bool:
    return form not in PLAIN and len(dims) == 2 and name not in _NOT_LINEAR


def _parts(dims: tuple[int, ...], form: CandidateFormat) -> Iterator[int]:
    """Bytes of what a compressed matrix is stored as: numbers and scales, and its shape if they are packed."""
    rows, columns = dims
    if form is CandidateFormat.W4A16:
        yield rows * -(-columns // _VALUES_IN_WORD) * _WORD_BYTES
        yield rows * -(-columns // _GROUP) * _SCALE_BYTES
        yield _SHAPE_BYTES
    else:
        yield rows * columns
        yield rows * _SCALE_BYTES
