"""The header of a GGUF file: its keys and its tensors, read in pieces, from a disk or over a network. Pure.

Headers are untrusted: every count and length is compared with the bytes that are left before anything is read or
kept, so a hostile file costs one error and neither time nor memory. Each error is a `ModelError` of one line.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the checks are at least those of llama.cpp.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from tasks.core.errors import ModelError
from tasks.core.paths import shown

MAGIC = b"GGUF"
MAX_HEADER_BYTES = 64 << 20
"""Vocabularies of 260,000 tokens with their merges take about 15 MB."""

_MAX_KEYS, _MAX_TENSORS, _MAX_NAME_BYTES, _MAX_DIMENSIONS = 1 << 16, 30_000, 1 << 12, 4
_MAX_KEPT_NUMBERS = 1 << 12
_MAX_TEXT_BYTES, _MAX_TEXTS = 4 << 20, 4_000_000
TOKENS, TOKEN_TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
_PACKED = (TOKENS, TOKEN_TYPES)
_PIECE_BYTES = 1 << 20
_LFS = b"version https://git-lfs"
_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

TYPES = {
    0: ("f32", 1, 4), 1: ("f16", 1, 2), 2: ("q4_0", 32, 18), 3: ("q4_1", 32, 20), 6: ("q5_0", 32, 22),
    7: ("q5_1", 32, 24), 8: ("q8_0", 32, 34), 9: ("q8_1", 32, 40), 10: ("q2_k", 256, 84), 11: ("q3_k", 256, 110),
    12: ("q4_k", 256, 144), 13: ("q5_k", 256, 176), 14: ("q6_k", 256, 210), 15: ("q8_k", 256, 292),
    16: ("iq2_xxs", 256, 66), 17: ("iq2_xs", 256, 74), 18: ("iq3_xxs", 256, 98), 19: ("iq1_s", 256, 50),
    20: ("iq4_nl", 32, 18), 21: ("iq3_s", 256, 110), 22: ("iq2_s", 256, 82), 23: ("iq4_xs", 256, 136),
    24: ("i8", 1, 1), 25: ("i16", 1, 2), 26: ("i32", 1, 4), 27: ("i64", 1, 8), 28: ("f64", 1, 8),
    29: ("iq1_m", 256, 56), 30: ("bf16", 1, 2), 34: ("tq1_0", 256, 54), 35: ("tq2_0", 256, 66),
    39: ("mxfp4", 32, 17), 40: ("nvfp4", 64, 36), 41: ("q1_0", 128, 18),
}  # fmt: skip
"""Name of each type of tensor, values and bytes of one of its blocks (gguf 0.19.0, `GGML_QUANT_SIZES`)."""

Scalar = str | int | float | bool
Read = Callable[[int, int], bytes]
"""`read(offset, length)`: exactly these bytes of the file."""


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: its type by name, sizes of its dimensions with the rows' length first, and its bytes."""

    name: str
    kind: str
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """What a file says of itself. `numbers` are short lists of whole numbers; of other lists only the `lengths` are
    kept, but for those of the vocabulary, which are `packed` as the file has them. Sizes in bytes."""

    values: Mapping[str, Scalar]
    numbers: Mapping[str, tuple[int, ...]]
    lengths: Mapping[str, int]
    tensors: tuple[GgufTensor, ...]
    packed: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def text(self, key: str) -> str | None:
        """The text under a key; None if there is none."""
        value = self.values.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | None:
        """The whole number under a key; None if there is none."""
        value = self.values.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    @functools.cached_property
    def tokens(self) -> tuple[str, ...]:
        """The vocabulary, by id; none if the file has none."""
        packed, found, at = self.packed.get(TOKENS, b""), [], 0
        while at < len(packed):
            end = at + 8 + _LENGTH.unpack_from(packed, at)[0]
            found.append(packed[at + 8 : end].decode(errors="replace"))
            at = end
        return tuple(found)

    @functools.cached_property
    def token_types(self) -> tuple[int, ...]:
        """The kind of each token, by id, as llama.cpp counts them; none if the file does not say."""
        packed = self.packed.get(TOKEN_TYPES, b"")
        return struct.unpack(f"<{len(packed) // 4}i", packed)


def read_gguf(read: Read, file_bytes: int, name: str) -> GgufHeader:
    """The header of the file called `name`, checked against the file's size. Raises `ModelError`.

    All tensors must lie inside the file: one that was cut off is refused.
    """
    head = read(0, min(24, file_bytes))
    if head.startswith(_LFS):
        raise ModelError(f"{name} is a Git LFS pointer, not the file itself", fix="fetch it: git lfs pull")
    if not head.startswith(MAGIC):
        raise ModelError(f"{name} is not a GGUF file", fix="copy or download it again")
    if len(head) < 24:
        _refuse(name, f"it has {file_bytes} bytes, too few for a header")
    version, tensors, keys = struct.unpack_from("<IQQ", head, 4)
    if version not in (2, 3):
        swapped = int.from_bytes(head[4:8], "big") in (2, 3)
        why = "it is big-endian" if swapped else f"its version is {version}; versions 2 and 3 are read"
        raise ModelError(f"{name}: {why}", fix="convert the model again with a current llama.cpp")
    if tensors > _MAX_TENSORS:
        _refuse(name, f"it claims {tensors} tensors; at most {_MAX_TENSORS} are read")
    if keys > _MAX_KEYS:
        _refuse(name, f"it claims {keys} keys; at most {_MAX_KEYS} are read")
    cursor = _Cursor(read, file_bytes, name)
    values, numbers, lengths, places = _read_keys(cursor, keys)
    found = tuple(_read_tensors(cursor, tensors, values))
    packed = {key: read(begin, end - begin) for key, (begin, end) in places.items()}
    return GgufHeader(values, numbers, lengths, found, packed)


def _refuse(name: str, why: str) -> NoReturn:
    raise ModelError(f"{name} is not a valid GGUF file: {why}", fix="copy or download it again")


class _Cursor:
    """A position in the file, and a window of its bytes around it."""

    def __init__(self, read: Read, file_bytes: int, name: str) -> None:
        self.name = name
        self.file_bytes = file_bytes
        self.position = 24
        self._read = read
        self._window = b""
        self._start = 24

    @property
    def left(self) -> int:
        """Bytes from here to the end of the file, or to where headers may end."""
        return min(self.file_bytes, MAX_HEADER_BYTES) - self.position

    def take(self, length: int) -> bytes:
        """The next bytes. Raises `ModelError` at the end."""
        self.skip(length)
        begin = self.position - length - self._start
        if begin < 0 or begin + length > len(self._window):
            self._start = self.position - length
            rest = self.file_bytes - self._start
            self._window = self._read(self._start, min(max(length, _PIECE_BYTES), rest))
            begin = 0
        return self._window[begin : begin + length]

    def skip(self, length: int) -> None:
        """Go on without reading. Raises `ModelError` at the end."""
        if length > self.left:
            if self.file_bytes > MAX_HEADER_BYTES:
                _refuse(self.name, f"its header is larger than {MAX_HEADER_BYTES} bytes")
            _refuse(self.name, "it ends within its header")
        self.position += length

    def skip_texts(self, count: int) -> None:
        """Go on behind that many texts, quickly: vocabularies have hundreds of thousands."""
        length_of = _LENGTH.unpack_from
        while count:
            self.take(8)  # a window that contains the next length
            at, window = self.position - 8 - self._start, self._window
            end, limit = len(window) - 8, self.left + at + 8
            while count and at <= end:
                at += 8 + length_of(window, at)[0]
                count -= 1
                if at > limit:
                    break
            self.position = self._start
            self.skip(at)

    def number(self, code: str) -> int:
        """The next whole number of that kind."""
        value: int = struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0]
        return value

    def text(self, what: str, most: int) -> str:
        """The next text. Raises `ModelError` for one that is longer than `most` bytes."""
        length = self.number("Q")
        if length > most:
            _refuse(self.name, f"{what} claims {length} bytes; at most {most} are read")
        return self.take(length).decode(errors="replace")


_Keys = tuple[dict[str, Scalar], dict[str, tuple[int, ...]], dict[str, int], dict[str, tuple[int, int]]]


def _read_keys(cursor: _Cursor, count: int) -> _Keys:
    values: dict[str, Scalar] = {}
    numbers: dict[str, tuple[int, ...]] = {}
    lengths: dict[str, int] = {}
    places: dict[str, tuple[int, int]] = {}
    for _ in range(count):
        key = cursor.text("the name of a key", _MAX_NAME_BYTES)
        if key in values or key in lengths:
            _refuse(cursor.name, f"the key {shown(key)} occurs twice")
        kind = cursor.number("I")
        if kind == _ARRAY:
            content = cursor.position + 12  # behind the type of its values and its length
            lengths[key], kept = _read_list(cursor, key)
            if key in _PACKED:
                _check_packed(cursor.name, key, cursor.position - content, lengths[key])
                places[key] = content, cursor.position
            if kept is not None:
                numbers[key] = kept
        else:
            values[key] = _read_value(cursor, kind, key)
    return values, numbers, lengths, places


def _check_packed(name: str, key: str, size: int, length: int) -> None:
    """Tokens are texts, their types 32-bit numbers."""
    if (size < 8 * length) if key == TOKENS else (size != 4 * length):
        _refuse(name, f"the list {shown(key)} has values of another type")


def _read_value(cursor: _Cursor, kind: int, key: str) -> Scalar:
    if kind == _STRING:
        return cursor.text(f"the text {shown(key)}", _MAX_TEXT_BYTES)
    if kind not in _SCALARS:
        _refuse(cursor.name, f"the key {shown(key)} has the unknown type {kind}")
    code = f"<{_SCALARS[kind]}"
    value: Scalar = struct.unpack(code, cursor.take(struct.calcsize(code)))[0]
    if isinstance(value, float) and not math.isfinite(value):
        _refuse(cursor.name, f"the key {shown(key)} is {value}")
    return value


def _read_list(cursor: _Cursor, key: str) -> tuple[int, tuple[int, ...] | None]:
    """Length of a list, and its content if it is a short one of whole numbers. Lists of lists are refused."""
    kind, length = cursor.number("I"), cursor.number("Q")
    code = _SCALARS.get(kind)
    if code is None and kind != _STRING:
        what = "of lists" if kind == _ARRAY else f"of the unknown type {kind}"
        _refuse(cursor.name, f"the key {shown(key)} is a list {what}")
    size = struct.calcsize(f"<{code}") if code else 8  # a text begins with its length
    if length * size > cursor.left:
        _refuse(cursor.name, f"the list {shown(key)} claims {length} values, more than the file holds")
    if code is None:
        if length > _MAX_TEXTS:
            _refuse(
                cursor.name, f"the list {shown(key)} claims {length} texts; at most {_MAX_TEXTS} are read"
            )
        cursor.skip_texts(length)
        return length, None
    if code in "fd" or length > _MAX_KEPT_NUMBERS:
        cursor.skip(length * size)
        return length, None
    return length, tuple(map(int, struct.unpack(f"<{length}{code}", cursor.take(length * size))))


def _read_tensors(cursor: _Cursor, count: int, values: Mapping[str, Scalar]) -> list[GgufTensor]:
    """The table of tensors: each begins where the one before ends, as llama.cpp demands."""
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 16 or alignment & (alignment - 1):
        _refuse(cursor.name, f"general.alignment is {alignment}")
    found: dict[str, GgufTensor] = {}
    expected = end = 0
    for _ in range(count):
        tensor, offset = _read_tensor(cursor)
        if tensor.name in found:
            _refuse(cursor.name, f"the tensor {shown(tensor.name)} occurs twice")
        if offset != expected:
            _refuse(cursor.name, f"the tensor {shown(tensor.name)} is at {offset}, not at {expected}")
        found[tensor.name] = tensor
        end = expected + tensor.size_bytes
        expected = _padded(end, alignment)
    whole = _padded(cursor.position, alignment) + end if found else cursor.position
    if whole > cursor.file_bytes:
        raise ModelError(
            f"{cursor.name} is cut off: its tensors end at {whole} bytes, it has {cursor.file_bytes}",
            fix="copy or download it again",
        )
    return list(found.values())


def _read_tensor(cursor: _Cursor) -> tuple[GgufTensor, int]:
    """The entry of one tensor, and where its bytes begin."""
    name = cursor.text("the name of a tensor", _MAX_NAME_BYTES)
    dimensions = cursor.number("I")
    if dimensions > _MAX_DIMENSIONS:
        _refuse(cursor.name, f"the tensor {shown(name)} has {dimensions} dimensions")
    *shape, number, offset = struct.unpack(f"<{dimensions}QIQ", cursor.take(8 * dimensions + 12))
    if number not in TYPES:
        _refuse(cursor.name, f"the tensor {shown(name)} has the unknown type {number}")
    kind, values, size = TYPES[number]
    row = shape[0] if shape else 1
    if row % values:
        _refuse(cursor.name, f"the tensor {shown(name)} has rows of {row} values, {kind} needs {values}")
    return GgufTensor(name, kind, tuple(shape), math.prod(shape) // values * size), offset


def _padded(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
