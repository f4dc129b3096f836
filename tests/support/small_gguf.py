"""GGUF files of a few hundred bytes, right or wrong in one place."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

KEYS: dict[str, Any] = {
    "general.architecture": "llama",
    "general.file_type": 15,
    "llama.block_count": 2,
    "llama.embedding_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.context_length": 512,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["a", "b", "c", "</s>"],
    "tokenizer.ggml.eos_token_id": 3,
    "tokenizer.chat_template": "{{ messages }}",
}
"""A Llama of two layers."""

TENSORS: dict[str, tuple[tuple[int, ...], int]] = {
    "token_embd.weight": ((256, 4), 12),  # q4_k
    "output_norm.weight": ((64,), 0),
}
_SIZES = {0: (1, 4), 1: (1, 2), 2: (32, 18), 12: (256, 144), 30: (1, 2)}


def text(value: str | bytes) -> bytes:
    """A text as GGUF has it."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def key(name: str, value: Any) -> bytes:
    """A key with its value: text, whole number, float, truth, or a list of texts or numbers."""
    if isinstance(value, list):
        kind = 8 if value and isinstance(value[0], str) else 5
        parts = [text(one) if kind == 8 else struct.pack("<i", one) for one in value]
        return text(name) + struct.pack("<IIQ", 9, kind, len(value)) + b"".join(parts)
    if isinstance(value, str):
        return text(name) + struct.pack("<I", 8) + text(value)
    if isinstance(value, bool):
        return text(name) + struct.pack("<I?", 7, value)
    if isinstance(value, float):
        return text(name) + struct.pack("<If", 6, value)
    return text(name) + struct.pack("<II", 4, value)


def tensor(name: str, shape: Sequence[int], kind: int, offset: int) -> bytes:
    """The entry of a tensor."""
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


def gguf_bytes(
    keys: Mapping[str, Any] = KEYS,
    tensors: Mapping[str, tuple[tuple[int, ...], int]] = TENSORS,
    version: int = 3,
) -> bytes:
    """A whole file; the tensors' bytes are zeros."""
    entries, data = b"", 0
    for name, (shape, kind) in tensors.items():
        entries += tensor(name, shape, kind, data)
        values, size = _SIZES[kind]
        count = 1
        for one in shape:
            count *= one
        data += -(-count // values * size // 32) * 32
    head = struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(keys))
    head += b"".join(key(name, value) for name, value in keys.items()) + entries
    return head + bytes(-len(head) % 32) + bytes(data)


def write_gguf(path: Path, **changes: Any) -> Path:
    """A Llama at `path`, with these keys changed; `__` stands for a dot."""
    path.write_bytes(gguf_bytes({**KEYS, **{name.replace("__", "."): one for name, one in changes.items()}}))
    return path


def write_parts(folder: Path, stem: str = "m-Q4_K_M", count: int = 3) -> list[Path]:
    """A split Llama: the first part has the keys, and each a tensor."""
    paths = []
    for number in range(count):
        split = {"split.no": number, "split.count": count, "split.tensors.count": count}
        keys = {**KEYS, **split} if number == 0 else split
        path = folder / f"{stem}-{number + 1:05d}-of-{count:05d}.gguf"
        path.write_bytes(gguf_bytes(keys, {f"blk.{number}.ffn_up.weight": ((256, 4), 12)}))
        paths.append(path)
    return paths
