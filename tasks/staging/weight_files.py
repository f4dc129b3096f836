"""Which safetensors files of a source are the model, and which only lie next to it. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.core.errors import ModelError
from tasks.core.paths import some_of

WEIGHTS_FILE = "model.safetensors"
MISTRAL_PARAMS = "params.json"
_MOST_SHARDS = 100_000

_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors", re.ASCII)
_ADAPTER = re.compile(r"(?:adapters?|adapter_model|lora)(?:[-_.].*)?\.safetensors")
_MISTRAL = re.compile(r"consolidated(?:[-_.].*)?\.safetensors")
_VARIANT = re.compile(r"model\.[A-Za-z]\w*(?:-\d{5}-of-\d{5})?\.safetensors")


@dataclass(frozen=True)
class WeightFiles:
    """The files of the model, and those that are left aside: adapters, copies in another layout or precision."""

    weights: tuple[str, ...]
    aside: tuple[str, ...]


def choose_weights(names: Sequence[str], source: str) -> WeightFiles:
    """The model's files where no index names them: a numbered set, else `model.safetensors`, else all that are not
    known to be something else.

    Raises `ModelError` for a set that lacks a shard, or for two sets.
    """
    tensors = sorted(name for name in names if name.endswith(".safetensors"))
    own = [name for name in tensors if not is_adapter(name) and not is_mistral(name)]
    plain = [name for name in own if not _VARIANT.fullmatch(name)]
    chosen = _choose(plain or own, source)
    return WeightFiles(chosen, tuple(name for name in tensors if name not in chosen))


def is_sure(files: WeightFiles) -> bool:
    """Whether their names say that these files are a whole model: not so for files of any other name."""
    return bool(files.weights) and all(
        one == WEIGHTS_FILE or _NUMBERED.fullmatch(one) for one in files.weights
    )


def is_adapter(name: str) -> bool:
    """Whether a file of this name contains a LoRA adapter."""
    return _ADAPTER.fullmatch(name) is not None


def is_mistral(name: str) -> bool:
    """Whether a file of this name contains weights under Mistral's own names."""
    return _MISTRAL.fullmatch(name) is not None


def aside_finding(names: Sequence[str]) -> tuple[str, ...]:
    """The remark about weights that are left aside; none without any."""
    if not names:
        return ()
    return (f"other weights next to the model, not copied: {some_of(names)}",)


def _choose(names: Sequence[str], source: str) -> tuple[str, ...]:
    sets = _numbered(names)
    whole = {key: shards for key, shards in sets.items() if len(shards) == key[1]}
    models = [shards for (stem, _), shards in whole.items() if stem == "model"]
    if len(models) > 1:
        raise ModelError(
            f"{source} contains two sets of shards: {models[0][1]} … and {models[1][1]} …",
            fix="move away the one that is not the model's",
        )
    if models:
        return tuple(models[0][number] for number in sorted(models[0]))
    if WEIGHTS_FILE in names:
        return (WEIGHTS_FILE,)
    for key, shards in sets.items():
        if key not in whole:
            raise _missing(source, key, shards)
    return tuple(names)


def _numbered(names: Sequence[str]) -> dict[tuple[str, int], dict[int, str]]:
    """The shards by stem and count, each by its number. Numbers out of range count as files of their own."""
    sets: dict[tuple[str, int], dict[int, str]] = {}
    for name in names:
        found = _NUMBERED.fullmatch(name)
        if found and 1 <= int(found["number"]) <= int(found["count"]) < _MOST_SHARDS:
            sets.setdefault((found["stem"], int(found["count"])), {})[int(found["number"])] = name
    return sets


def _missing(source: str, key: tuple[str, int], shards: dict[int, str]) -> ModelError:
    stem, count = key
    first = next(number for number in range(1, count + 1) if number not in shards)
    lacking = f"{stem}-{first:05d}-of-{count:05d}.safetensors"
    return ModelError(
        f"{source}/{lacking} is missing: {len(shards)} of {count} shards are there",
        fix="copy or download all shards",
    )
