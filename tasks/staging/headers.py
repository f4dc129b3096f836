"""What the files of a source say before anything is copied: headers of weights, and what is no model at all."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tasks.core.errors import ModelError
from tasks.core.paths import some_of
from tasks.core.safetensors import LENGTH_BYTES, Header, header_length, parse_header
from tasks.staging.completeness import has_layers, is_adapted, missing_tensors
from tasks.staging.plan import (
    Selection,
    adapter_error,
    check_index,
    is_stale,
    read_index,
    select_files,
)
from tasks.staging.source import Pinned
from tasks.staging.weight_files import aside_finding, choose_weights, is_adapter, is_mistral, is_sure

_ADAPTER_CONFIG = "adapter_config.json"
_POINTER = b"version https://git-lfs.github.com/spec/"
_POINTER_BYTES = range(100, 1024)
"""Sizes that a Git LFS pointer can have (git-lfs, docs/spec.md)."""


@dataclass(frozen=True)
class Weights:
    """The headers of the model's weights by file, and remarks about what is not copied."""

    headers: Mapping[str, Header]
    findings: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Names of all tensors."""
        return [tensor.name for header in self.headers.values() for tensor in header.tensors]


def choose_files(pinned: Pinned, code: Collection[str] = ()) -> Selection:
    """As `select_files`, of files that are not Git LFS pointers. Raises `ModelError`."""
    tensors = [name for name in _top(pinned) if name.endswith(".safetensors")]
    if tensors and all(map(is_adapter, tensors)):
        raise adapter_error(pinned.source.name, _base_of(pinned))
    selection = select_files(pinned.files, pinned.source.name, code)
    index = (selection.index,) if selection.index else ()
    others = [name for name in tensors if not is_adapter(name) and not is_mistral(name)]
    weights = selection.weights or others  # those that the index names are among them
    check_pointers(pinned, (*index, *weights, *selection.gguf, *selection.side))
    return selection


def check_pointers(pinned: Pinned, paths: Iterable[str]) -> None:
    """Raise `ModelError` if any of these files is a Git LFS pointer: a clone without the files themselves."""
    small = [path for path in dict.fromkeys(paths) if pinned.file(path).size_bytes in _POINTER_BYTES]
    found = [path for path in small if pinned.read_whole(path).startswith(_POINTER)]
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ModelError(
            f"{pinned.source.name}/{found[0]} is a Git LFS pointer{more}, not the file itself",
            fix="fetch it: git lfs pull",
        )


def read_weights(pinned: Pinned, selection: Selection) -> Weights:
    """The headers of the chosen files. Raises `ModelError` for anything wrong with them, or with the index."""
    weight_map = _read_index(pinned, selection)
    if weight_map is None:
        chosen = selection.weights
        findings: tuple[str, ...] = ()
        if selection.index:
            files = choose_weights(_top(pinned), pinned.source.name)
            chosen = files.weights
            stale = f"{selection.index} names none of the files that are there and was not used"
            findings = (stale, *aside_finding(files.aside))
        return Weights({path: read_header(pinned, path) for path in chosen}, findings)
    named = sorted(set(weight_map.values()))
    headers = {path: read_header(pinned, path) for path in named}
    check_index(weight_map, headers, f"{pinned.source.name}/{selection.index}")
    # A tensor may be in two shards, such as a tied one: the index says which counts.
    headers = {
        path: replace(
            header, tensors=tuple(one for one in header.tensors if weight_map.get(one.name, path) == path)
        )
        for path, header in headers.items()
    }
    aside = [
        one.path for one in pinned.files if one.path.endswith(".safetensors") and one.path not in headers
    ]
    return Weights(headers, aside_finding(aside))


def check_whole(
    weights: Weights, config: Mapping[str, Any], source: str, *, servable: bool
) -> tuple[str, ...]:
    """Remarks about weights that may not be all that the model needs.

    Raises `ModelError` for an adapter's weights, and for a model that is to be served and lacks any.
    """
    names = weights.names
    if is_adapted(names):
        raise adapter_error(source, None)
    missing = missing_tensors(config, names)
    if not missing:
        if has_layers(names):
            return ()
        return ("its tensors have names of its own: whether they are all there is not known",)
    lacking = f"the weights lack {some_of(missing, most=4)}"
    if servable:
        raise ModelError(
            f"{source}: {lacking}",
            fix="copy or download the whole model: an engine may serve random values in their place",
        )
    return (f"not a whole model: {lacking}",)


def read_header(pinned: Pinned, path: str) -> Header:
    """Header of one safetensors file. Raises `ModelError`."""
    file, name = pinned.file(path), f"{pinned.source.name}/{path}"
    first = pinned.source.read(file, 0, LENGTH_BYTES) if file.size_bytes >= LENGTH_BYTES else b""
    length = header_length(first, file.size_bytes, name)
    text = pinned.source.read(file, LENGTH_BYTES, length) if length else b""
    return parse_header(text, file.size_bytes, name)


def _read_index(pinned: Pinned, selection: Selection) -> Mapping[str, str] | None:
    """Tensor name to file; None without an index that can be used."""
    if not selection.index:
        return None
    names = _top(pinned)
    text = pinned.read_whole(selection.index)
    if is_stale(text, names) and is_sure(choose_weights(names, pinned.source.name)):
        return None
    return read_index(text, names, f"{pinned.source.name}/{selection.index}")


def _top(pinned: Pinned) -> list[str]:
    """Names of the files that are not in a folder of their own."""
    return [file.path for file in pinned.files if "/" not in file.path]


def _base_of(pinned: Pinned) -> str | None:
    """The model that an adapter was trained on, if its settings say so."""
    if not any(file.path == _ADAPTER_CONFIG for file in pinned.files):
        return None
    try:
        base = json.loads(pinned.read_whole(_ADAPTER_CONFIG)).get("base_model_name_or_path")
    except (ValueError, RecursionError, AttributeError):
        return None
    return base if isinstance(base, str) else None
