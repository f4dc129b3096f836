"""What a model's `config.json` says about its architecture: the sizes that memory and conversion depend on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from tasks.core.config_sizes import LARGEST, NotASizeError, language_part, longest_context, size_of
from tasks.core.errors import ModelError
from tasks.core.frozen import Frozen
from tasks.core.given_files import read_given
from tasks.core.kept_layers import KeptLayers, UnknownLayersError, keeps_state, kept_layers, listed_layers
from tasks.core.model_task import Task

CONVERTIBLE = {"LlamaForCausalLM": "llama", "Qwen3ForCausalLM": "qwen3"}
"""Architectures that can be converted to GGUF, by the name in `config.json`, with their family."""

ENCODERS = {"BertModel": "bert", "BertForSequenceClassification": "bert"}
"""The same of models for embeddings and rankings."""

_LIMIT_BYTES = 10_000_000
MOST_LAYERS = 10_000
"""A file that says more is damaged, or wants us to make long lists."""
Size = Annotated[int, Field(gt=0, le=2 * LARGEST)]


class ModelShape(Frozen):
    """Sizes of a language model; None for one that its configuration does not say in a way that is known here.

    `family` is its `model_type`. `kept` are the layers that keep keys and values;
    `stateful` models keep a state besides, of one size for each request. `unread` says what could not be
    read, so that it cannot be predicted and is left to the engine and to measurements.
    """

    architecture: str
    family: str
    layers: Size | None = None
    hidden: Size | None = None
    heads: Size | None = None
    kv_heads: Size | None = None
    vocabulary: Size | None = None
    max_context: Size | None = None
    kept: tuple[KeptLayers, ...] | None = None
    stateful: bool = False
    unread: tuple[str, ...] = ()

    @property
    def kv_bytes_per_token(self) -> int | None:
        """Bytes that each token of the context adds: those of layers that keep keys and values of all of it."""
        return None if self.kept is None else sum(one.token_bytes for one in self.kept if one.window is None)

    @property
    def widest_kv_bytes_per_token(self) -> int | None:
        """The same, if layers with a window keep everything as well: what an engine may reserve. None for a model
        without keys and values, or with a state."""
        return sum(one.token_bytes for one in self.kept) if self.kept and not self.stateful else None

    def kv_bytes(self, tokens: int) -> int:
        """Bytes of the keys and values of a context of `tokens`; 0 if that is not known."""
        return sum(one.token_bytes * min(tokens, one.window or tokens) for one in self.kept or ())

    def describe(self) -> str:
        """What is known of it, in a few words."""
        known = ((self.layers, f"{self.layers} layers"), (self.hidden, f"hidden {self.hidden}"))
        return ", ".join((self.family, *(words for size, words in known if size)))


def read_model_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of the model in `folder`. Raises `ModelError`."""
    path = folder / "config.json"
    fix = "give a folder in the Hugging Face layout"
    if not os.path.lexists(path):
        raise ModelError(f"{folder} contains no config.json", fix=fix)
    text = read_given(
        path, "configuration", limit_bytes=_LIMIT_BYTES, fix=fix, missing=ModelError, wrong=ModelError
    )
    return parse_model_config(text, str(path))


def read_model_shape(folder: Path) -> ModelShape:
    """The shape of the model in `folder`. Raises `ModelError` that names what is missing."""
    return shape_of(read_model_config(folder), f"{folder}/config.json")


def parse_model_shape(text: bytes, path: str) -> ModelShape:
    """The shape that a `config.json` found at `path` describes. Raises `ModelError`."""
    return shape_of(parse_model_config(text, path), path)


def parse_model_config(text: bytes, path: str) -> dict[str, Any]:
    """The JSON object of a `config.json` found at `path`. Raises `ModelError`."""
    try:
        config: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a JSON object")
    return config


def shape_of(config: Mapping[str, Any], path: str) -> ModelShape:
    """The shape that a configuration, found at `path`, describes.

    Raises `ModelError` for one that names no architecture, so that no engine can know what it is, and for a key
    whose value cannot be a size. What is missing is no error.
    """
    architecture, named = _architecture(config), config.get("model_type")
    if architecture is None and not isinstance(named, str):
        raise ModelError(
            f"{path} names no architecture", fix="take config.json from the model's original repository"
        )
    part = language_part(config)
    try:
        return _shape(part, architecture or "(none)", named[:80] if isinstance(named, str) else None)
    except NotASizeError as error:
        raise ModelError(f"{path}: a size is missing or wrong: {error}") from error


def _shape(part: Mapping[str, Any], architecture: str, model_type: str | None) -> ModelShape:
    layers = size_of(part, "layers") or listed_layers(part)
    if layers is not None and layers > MOST_LAYERS:
        raise NotASizeError("num_hidden_layers is not a size")
    heads, kept, stateful, unread = size_of(part, "heads"), None, False, []
    try:
        why = "the number of layers is missing"
        if layers is not None:
            kept, stateful = kept_layers(part, layers), keeps_state(part, layers)
    except UnknownLayersError as error:
        why = str(error)
    if kept is None:
        unread.append(f"how much memory keys and values take ({why})")
    if (context := longest_context(part)) is None:
        unread.append("which context is the longest")
    return ModelShape(
        architecture=architecture,
        family=model_type or CONVERTIBLE.get(architecture, architecture),
        layers=layers,
        hidden=size_of(part, "hidden"),
        heads=heads,
        kv_heads=size_of(part, "kv_heads") or heads,
        vocabulary=size_of(part, "vocabulary"),
        max_context=context,
        kept=kept,
        stateful=stateful,
        unread=tuple(unread),
    )


def check_convertible(shape: ModelShape, path: str, task: Task | None = None) -> None:
    """Raise `ModelError` for a model that cannot be converted to GGUF, to be served for that task if it is known."""
    if shape.architecture in ENCODERS and task is not Task.GENERATE:
        return
    if task not in (None, Task.GENERATE):
        raise ModelError(
            f"{path}: Slipway cannot convert the architecture {shape.architecture} to GGUF for {task}",
            fix=f"use one of {', '.join(ENCODERS)}, the model's GGUF file, or engine: vllm",
        )
    if shape.architecture not in CONVERTIBLE:
        raise ModelError(
            f"{path}: Slipway cannot convert the architecture {shape.architecture} to GGUF",
            fix=f"use one of {', '.join(CONVERTIBLE)}, or an engine that loads folders: engine: vllm or transformers",
        )
    for key, size in (
        ("num_hidden_layers", shape.layers),
        ("hidden_size", shape.hidden),
        ("num_attention_heads", shape.heads),
        ("vocab_size", shape.vocabulary),
        ("max_position_embeddings", shape.max_context),
    ):
        if size is None:
            raise ModelError(f"{path}: a size is missing or wrong: {key}")


def ties_embeddings(config: Mapping[str, Any]) -> bool:
    """Whether the output layer is the embedding, whose copy a converter leaves out."""
    return bool(config.get("tie_word_embeddings") or language_part(config).get("tie_word_embeddings"))


def _architecture(config: Mapping[str, Any]) -> str | None:
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else None
    return first[:80] if isinstance(first, str) else None
