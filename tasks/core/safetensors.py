"""The safetensors format: an 8-byte length, a JSON header, then the tensors' bytes without gaps.

Headers are untrusted, so everything in them is checked; each error is a `ModelError` of one line.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from tasks.core.errors import ModelError

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
"""The reference implementation's limit."""

ALIGNMENT = 4096
"""In shards that Slipway writes, data starts at a multiple of this, as direct I/O needs."""

_METADATA = "__metadata__"
_MAX_DIMENSIONS = 32
_SIZES = {
    8: ("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"),
    16: ("U16", "I16", "F16", "BF16"),
    32: ("U32", "I32", "F32"),
    64: ("U64", "I64", "F64", "C64"),
    6: ("F6_E2M3", "F6_E3M2"),
    4: ("F4",),
}
BITS = {dtype: bits for bits, dtypes in _SIZES.items() for dtype in dtypes}
"""Bits of one value of each element type."""


@dataclass(frozen=True)
class Tensor:
    """One tensor: offset and size of its bytes in its file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size_bytes: int


@dataclass(frozen=True)
class Header:
    """The content of one file: tensors in the order of their bytes, and the file's metadata."""

    tensors: tuple[Tensor, ...]
    metadata: Mapping[str, str]


def header_length(first: bytes, file_bytes: int, name: str) -> int:
    """Length of the JSON header that the first eight bytes announce. Raises `ModelError`."""
    if file_bytes < LENGTH_BYTES or len(first) < LENGTH_BYTES:
        raise _broken(name, f"it has {file_bytes} bytes, too few for a header")
    length = int.from_bytes(first[:LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise _broken(name, f"its header claims {length} bytes; at most {MAX_HEADER_BYTES} are allowed")
    if length > file_bytes - LENGTH_BYTES:
        raise _broken(name, f"its header claims {length} bytes, the file has {file_bytes}")
    return length


def parse_header(text: bytes, file_bytes: int, name: str) -> Header:
    """The header `text` of the file called `name`, checked against the file's size. Raises `ModelError`."""
    try:
        values = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise _broken(name, f"its header is not JSON: {' '.join(str(error).split())[:120]}") from None
    if not isinstance(values, dict):
        raise _broken(name, "its header is not a JSON object")
    metadata = values.pop(_METADATA, {})
    if not _is_text_map(metadata):
        raise _broken(name, f"its {_METADATA} does not map text to text")
    data = LENGTH_BYTES + len(text)
    tensors = [_tensor(key, entry, data, name) for key, entry in values.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.size_bytes))
    _check_cover(tensors, data, file_bytes, name)
    return Header(tuple(tensors), metadata)


def render_header(tensors: Sequence[Tensor], metadata: Mapping[str, str]) -> bytes:
    """Length and header of a file with these tensors in this order, padded to `ALIGNMENT` with spaces."""
    values: dict[str, Any] = {_METADATA: dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.size_bytes
        values[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode()
    padded = math.ceil((LENGTH_BYTES + len(text)) / ALIGNMENT) * ALIGNMENT - LENGTH_BYTES
    return padded.to_bytes(LENGTH_BYTES, "little") + text.ljust(padded)


def _tensor(key: str, entry: Any, data: int, name: str) -> Tensor:
    def wrong(why: str) -> NoReturn:
        raise _broken(name, f"tensor {key[:80]!r}: {why}")

    if not _is_encodable(key):
        wrong("its name is not valid text")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        wrong("it does not have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        wrong(f"unknown element type {str(dtype)[:40]!r}")
    if not _are_sizes(shape):
        wrong("its shape is not a list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        wrong(f"its offsets {str(offsets)[:60]} are not a start and an end")
    size = offsets[1] - offsets[0]
    if math.prod(shape) * BITS[dtype] != size * 8:
        wrong(f"{dtype} of shape {str(shape)[:60]} does not fit into {size} bytes")
    return Tensor(key, dtype, tuple(shape), data + offsets[0], size)


def _check_cover(tensors: Sequence[Tensor], data: int, file_bytes: int, name: str) -> None:
    """Tensors must cover the file from header to end: no overlap, no gap, nothing beyond."""
    position = data
    for tensor in tensors:
        if tensor.start != position:
            kind = "overlaps the one before it" if tensor.start < position else "leaves a gap before it"
            raise _broken(name, f"tensor {tensor.name[:80]!r} {kind}")
        position += tensor.size_bytes
    if position > file_bytes:
        raise _broken(
            name, f"it is truncated: its header describes {position} bytes, the file has {file_bytes}"
        )
    if position < file_bytes:
        raise _broken(name, f"{file_bytes - position} bytes after its last tensor are unused")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name occurs twice")
    return values


def _is_text_map(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(text, str) and _is_encodable(text) and _is_encodable(key) for key, text in value.items()
    )


def _is_encodable(text: str) -> bool:
    """JSON can contain half of a surrogate pair, which is not valid text in any encoding."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _are_sizes(value: Any) -> bool:
    """Bounded in number and size, so that their product is cheap."""
    if not isinstance(value, list) or len(value) > _MAX_DIMENSIONS:
        return False
    return all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _broken(name: str, why: str) -> ModelError:
    return ModelError(f"{name} is not a valid safetensors file: {why}", fix="copy or download it again")
