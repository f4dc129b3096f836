"""Ways to load a model's files, and what each serving engine is told for each. Pure."""

from __future__ import annotations

import tomllib
from enum import StrEnum
from functools import cache
from pathlib import Path

_TABLE = Path(__file__).parent / "data" / "loaders.toml"


class Loader(StrEnum):
    """What brings tensors from files into memory.

    `mmap` maps the files and touches each page; `prefetch` does so while the files are read into the page cache
    beside it; the others are the libraries of these names.
    """

    MMAP = "mmap"
    PREFETCH = "prefetch"
    SAFETENSORS = "safetensors"
    FASTSAFETENSORS = "fastsafetensors"
    RUNAI_STREAMER = "runai_streamer"


LIBRARIES = (Loader.SAFETENSORS, Loader.FASTSAFETENSORS, Loader.RUNAI_STREAMER)
"""Those that need an environment of their own; they read safetensors only."""


def load_arguments(engine: str, loader: Loader) -> tuple[str, ...] | None:
    """What the engine's command line takes to load by `loader`; None where it cannot."""
    return _table().get((engine, loader))


def engines_with(loader: Loader) -> dict[str, tuple[str, ...]]:
    """The engines that can load so, each with what it is told."""
    return {engine: arguments for (engine, found), arguments in _table().items() if found == loader}


@cache
def _table() -> dict[tuple[str, Loader], tuple[str, ...]]:
    rows = tomllib.loads(_TABLE.read_text())["row"]
    return {(row["engine"], Loader(row["loader"])): tuple(row["arguments"]) for row in rows}
