"""A model of random bytes in the Hugging Face layout, as large as wanted: for copies, where sense is not needed."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

from tasks.core.safetensors import BITS

STEP = 16 << 20


def write_model(folder: Path, size_bytes: int, *, seed: int, files: int = 2) -> Path:
    """About `size_bytes` of weights: large tensors with small ones between them, in two element types."""
    chance = random.Random(seed)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_bytes(chance.randbytes(70_001))
    weight_map: dict[str, str] = {}
    for number in range(1, files + 1):
        name = f"model-{number:05d}-of-{files:05d}.safetensors"
        sizes = _sizes(size_bytes // files, chance)
        tensors = {f"layer.{number}.{i}.weight": size for i, size in enumerate(sizes)}
        _write(folder / name, tensors)
        weight_map |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def _sizes(total: int, chance: random.Random) -> list[int]:
    largest = max(total // 12, 8)
    sizes = []
    while total > 0:
        size = min(total, chance.choice((largest, largest // 3, 8192))) // 4 * 4
        sizes.append(max(size, 4))
        total -= sizes[-1]
    return sizes


def _write(path: Path, tensors: dict[str, int]) -> None:
    header = {}
    offset = 0
    for number, (name, size) in enumerate(tensors.items()):
        dtype = ("F32", "BF16")[number >= len(tensors) // 4]
        shape = [size * 8 // BITS[dtype]]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text = text.ljust(len(text) + -len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, offset, STEP):
            file.write(os.urandom(min(STEP, offset - start)))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def same_tensors(first: Path, second: Path) -> bool:
    """Whether two folders hold the same tensors, by a reader of its own."""
    return _tensors(first) == _tensors(second)


def _tensors(folder: Path) -> dict[str, tuple[object, int]]:
    found: dict[str, tuple[object, int]] = {}
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            for name, entry in header.items():
                if name != "__metadata__":
                    start, end = entry["data_offsets"]
                    file.seek(8 + length + start)
                    found[name] = ((entry["dtype"], entry["shape"]), hash(file.read(end - start)))
    return found
