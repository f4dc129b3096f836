"""Read from a staged model what the size of its candidates depends on: headers and vocabulary, no weights."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from tasks.core.chat_template import Template, find_template
from tasks.core.errors import ModelError
from tasks.core.gguf import read_gguf
from tasks.core.gguf_model import GgufModel, model_of
from tasks.core.manifest import MANIFEST_FILE
from tasks.core.model_shape import ModelShape, read_model_config, shape_of, ties_embeddings
from tasks.core.safetensors import LENGTH_BYTES, Tensor, header_length, parse_header
from tasks.core.sources import GGUF
from tasks.core.spec_kinds import CandidateFormat
from tasks.core.weight_format import HF_QUANT_FILE, WeightFormat, parse_weight_format
from tasks.quantization.models import BaselineModel
from tasks.quantization.packed import unpacked
from tasks.quantization.sizes import Source, vocabulary_bytes

UNQUANTIZED_FORMATS = ("f32", "f16", "bf16")
"""What a baseline may come in."""


def read_source(folder: Path, config: Mapping[str, Any], *, to_gguf: bool = True) -> Source:
    """Shapes of the model in `folder`, whose `config.json` was read already; `to_gguf` also its vocabulary, which
    engines that load folders read themselves, from whatever files the model has. Raises `ModelError` for a damaged or
    missing file."""
    shape = shape_of(config, f"{folder}/config.json")
    shapes: dict[str, tuple[int, ...]] = {}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"{folder} contains no safetensors file", fix="stage a model in the safetensors format"
        )
    for path in files:
        shapes |= _shapes(path)
    if ties_embeddings(config):  # the converter leaves the copy out
        shapes.pop("lm_head.weight", None)
    vocabulary = _vocabulary_bytes(folder / "tokenizer.json", shape.vocabulary or 0) if to_gguf else 0
    return Source(shape, shapes, vocabulary, _beside_bytes(folder))


def read_quantized_source(folder: Path, config: Mapping[str, Any], weights: WeightFormat) -> Source:
    """The same of a model in safetensors that comes quantized: the bytes of its files, by their headers. Raises
    `ModelError`."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST_FILE)
    tensors = [tensor for path in files if path.suffix == ".safetensors" for tensor in _tensors(path)]
    if not tensors:
        raise ModelError(
            f"{folder} contains no safetensors file", fix="stage a model in the safetensors format"
        )
    return Source(
        shape_of(config, f"{folder}/config.json"),
        {},
        0,
        as_is=tuple(path.name for path in files),
        as_is_bytes=sum(path.stat().st_size for path in files),
        stored_as=weights.describe(),
        weights=weights,
        unpacked_bytes=unpacked(tensors, weights),
    )


def read_baseline(folder: Path, digest: str) -> tuple[BaselineModel, ModelShape]:
    """The staged model of that digest in `folder`, which another is compared with, and its shape. Raises `ModelError`
    for one that is quantized itself."""
    if names := gguf_in(folder):
        source = read_gguf_source(folder, names)
        stored, files, size = str(source.stored_as), names, source.as_is_bytes
        shape = source.shape
    else:
        config = read_model_config(folder)
        weights = weights_in(folder, config)
        paths = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST_FILE)
        files, size = tuple(path.name for path in paths), sum(path.stat().st_size for path in paths)
        stored = weights.describe() if weights else _plain_type(folder)
        shape = shape_of(config, f"{folder}/config.json")
    if stored not in UNQUANTIZED_FORMATS:
        raise ModelError(
            f"tuning.baseline comes in {stored}: there is nothing to compare a quantized model with",
            fix="give the model that is not quantized, or leave tuning.baseline out",
        )
    form = CandidateFormat(stored)
    return BaselineModel(
        model_dir=folder, model_digest=digest, files=files, format=form, size_bytes=size
    ), shape


def _plain_type(folder: Path) -> str:
    """The type that most bytes of the weights are in, as a format's name."""
    sizes: Counter[str] = Counter()
    for path in folder.glob("*.safetensors"):
        for tensor in _tensors(path):
            sizes[tensor.dtype.lower()] += tensor.size_bytes
    return sizes.most_common(1)[0][0] if sizes else "no weights"


def weights_in(folder: Path, config: Mapping[str, Any]) -> WeightFormat | None:
    """How the model in `folder` is quantized; None if it is not. Raises `ModelError`."""
    path = folder / HF_QUANT_FILE
    beside = path.read_bytes() if path.is_file() else None
    return parse_weight_format(config, beside, str(path))


def gguf_in(folder: Path) -> tuple[str, ...]:
    """Names of the GGUF files, in order, if the model in `folder` has no others."""
    if any(folder.glob("*.safetensors")):
        return ()
    return tuple(sorted(path.name for path in folder.glob(f"*{GGUF}")))


def read_gguf_source(folder: Path, names: Sequence[str]) -> Source:
    """The same of a staged model that comes as GGUF. Raises `ModelError`."""
    model = read_gguf_in(folder, names)
    size = sum((folder / name).stat().st_size for name in names)
    return Source(
        model.shape,
        {},
        0,
        as_is=tuple(names),
        as_is_bytes=size,
        stored_as=model.stored_as,
        purpose=model.purpose,
    )


def read_gguf_in(folder: Path, names: Sequence[str]) -> GgufModel:
    """The model in these files of a folder, in order. Raises `ModelError`."""
    headers = {}
    for name in names:
        path = folder / name
        with path.open("rb") as file:
            headers[name] = read_gguf(partial(_read_at, file), path.stat().st_size, str(path))
    return model_of(headers, str(folder / names[0]))


def template_of(path: Path) -> Template | None:
    """The chat template of a model or candidate, in a folder or a GGUF file; None without one.

    Raises `ModelError`.
    """
    names = gguf_in(path) if path.is_dir() else (path.name,)
    if not names:
        return find_template(path)
    folder = path if path.is_dir() else path.parent
    text = read_gguf_in(folder, names).chat_template
    return None if text is None else Template(text, str(path))


def _read_at(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tensor.shape for tensor in _tensors(path)}


def _tensors(path: Path) -> tuple[Tensor, ...]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = header_length(file.read(LENGTH_BYTES), size, path.name)
        return parse_header(file.read(length), size, path.name).tensors


def _beside_bytes(folder: Path) -> int:
    written_anew = ("config.json", "manifest.json", "model.safetensors.index.json")
    return sum(
        path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
        and not (path.parent == folder and (path.suffix == ".safetensors" or path.name in written_anew))
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
