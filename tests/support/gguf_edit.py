"""A GGUF file with other keys in its header: the tensors stay as they are."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from small_gguf import key

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TEXT, _LIST = 8, 9


def edited(data: bytes, changes: dict[str, Any]) -> bytes:
    """The file with these keys set, or removed if they are None."""
    version, tensors, count = struct.unpack_from("<IQQ", data, 4)
    at, kept = 24, {}
    for _ in range(count):
        name, end = _entry(data, at)
        kept[name], at = data[at:end], end
    kept |= {name: key(name, value) for name, value in changes.items() if value is not None}
    for name in (name for name, value in changes.items() if value is None):
        del kept[name]
    table = _end_of_table(data, at, tensors)
    head = (
        struct.pack("<4sIQQ", b"GGUF", version, tensors, len(kept)) + b"".join(kept.values()) + data[at:table]
    )
    return head + bytes(-len(head) % 32) + data[table + -table % 32 :]


def texts_in(data: bytes, name: str) -> list[str]:
    """The texts in a list."""
    at = 24
    for _ in range(struct.unpack_from("<Q", data, 16)[0]):
        found, end = _entry(data, at)
        if found == name:
            return list(_texts(data, at + 8 + len(name) + 8))
        at = end
    raise KeyError(name)


def _texts(data: bytes, at: int) -> Iterator[str]:
    count, at = struct.unpack_from("<Q", data, at)[0], at + 8
    for _ in range(count):
        length = struct.unpack_from("<Q", data, at)[0]
        yield data[at + 8 : at + 8 + length].decode()
        at += 8 + length


def _entry(data: bytes, at: int) -> tuple[str, int]:
    length = struct.unpack_from("<Q", data, at)[0]
    at += 8 + length
    name = data[at - length : at].decode()
    kind = struct.unpack_from("<I", data, at)[0]
    return name, _end(data, at + 4, kind)


def _end(data: bytes, at: int, kind: int) -> int:
    if kind == _TEXT:
        return int(at + 8 + struct.unpack_from("<Q", data, at)[0])
    if kind != _LIST:
        return at + _SIZES[kind]
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner != _TEXT:
        return int(at + count * _SIZES[inner])
    for _ in range(count):
        at = _end(data, at, _TEXT)
    return at


def _end_of_table(data: bytes, at: int, tensors: int) -> int:
    for _ in range(tensors):
        at += 8 + struct.unpack_from("<Q", data, at)[0]
        at += 4 + 8 * struct.unpack_from("<I", data, at)[0] + 12
    return at
