"""What weights that are stored in few bits take once they are unpacked to 16, by their files' headers. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.core.safetensors import BITS, Tensor
from tasks.core.weight_format import WeightFormat

_FULL_BITS = 16
_FLOATS = ("F64", "F32", "F16", "BF16")
_EIGHT_BITS = ("bnb-int8", "fp8", "fp8-block", "int8")
_PACKED = ("weight", "weight_packed", "qweight", "_blocks")
"""How the tensors end that hold the numbers: scales, zero points and shapes lie next to them."""


def unpacked(tensors: Sequence[Tensor], weights: WeightFormat) -> int:
    """The weights in 16 bits, bytes. Of a type that is not known, as many bytes as they are stored in."""
    return sum(_unpacked_bytes(tensor, weights) for tensor in tensors)


def _unpacked_bytes(tensor: Tensor, weights: WeightFormat) -> int:
    if tensor.dtype in _FLOATS:
        return tensor.size_bytes * _FULL_BITS // max(_FULL_BITS, BITS[tensor.dtype])
    if weights.weight_type is None or not tensor.name.endswith(_PACKED):
        return tensor.size_bytes
    return tensor.size_bytes * _FULL_BITS // (8 if weights.weight_type in _EIGHT_BITS else 4)
