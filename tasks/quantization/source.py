"""Read from a staged model what the size of its candidates depends on: headers and vocabulary, no weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from tasks.core.errors import ModelError
from tasks.core.gguf import read_gguf
from tasks.core.gguf_model import model_of
from tasks.core.model_shape import shape_of
from tasks.core.safetensors import LENGTH_BYTES, header_length, parse_header
from tasks.core.sources import GGUF
from tasks.quantization.sizes import Source, vocabulary_bytes


def read_source(folder: Path, config: Mapping[str, Any]) -> Source:
    """Shapes and vocabulary of the model in `folder`, whose `config.json` was read already. Raises `ModelError` for a
    damaged or missing file."""
    shape = shape_of(config, f"{folder}/config.json")
    shapes: dict[str, tuple[int, ...]] = {}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"{folder} contains no safetensors file", fix="stage a model in the safetensors format"
        )
    for path in files:
        shapes |= _shapes(path)
    if config.get("tie_word_embeddings"):  # the converter leaves the copy out
        shapes.pop("lm_head.weight", None)
    vocabulary = _vocabulary_bytes(folder / "tokenizer.json", shape.vocabulary)
    return Source(shape, shapes, vocabulary, _beside_bytes(folder))


def gguf_in(folder: Path) -> tuple[str, ...]:
    """Names of the GGUF files, in order, if the model in `folder` has no others."""
    if any(folder.glob("*.safetensors")):
        return ()
    return tuple(sorted(path.name for path in folder.glob(f"*{GGUF}")))


def read_gguf_source(folder: Path, names: Sequence[str]) -> Source:
    """The same of a staged model that comes as GGUF. Raises `ModelError`."""
    headers, size = {}, 0
    for name in names:
        path = folder / name
        with path.open("rb") as file:
            length = path.stat().st_size
            headers[name] = read_gguf(partial(_read_at, file), length, str(path))
        size += length
    model = model_of(headers, str(folder / names[0]))
    return Source(
        model.shape,
        {},
        0,
        gguf=tuple(names),
        gguf_bytes=size,
        stored_as=model.stored_as,
        purpose=model.purpose,
    )


def _read_at(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = header_length(file.read(LENGTH_BYTES), size, path.name)
        header = parse_header(file.read(length), size, path.name)
    return {tensor.name: tensor.shape for tensor in header.tensors}


def _beside_bytes(folder: Path) -> int:
    written_anew = ("config.json", "manifest.json", "model.safetensors.index.json")
    return sum(
        path.stat().st_size
        for path in folder.iterdir()
        if path.is_file() and path.suffix != ".safetensors" and path.name not in written_anew
    )


def _vocabulary_bytes(path: Path, rows: int) -> int:
    try:
        model: Any = json.loads(path.read_text())["model"]
        merges = [one if isinstance(one, str) else " ".join(one) for one in model.get("merges") or []]
        return vocabulary_bytes(list(model.get("vocab") or {}), merges, rows)
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise ModelError(
            f"{path} is missing or not a tokenizer", fix="take the whole model folder, and stage it again"
        ) from None
