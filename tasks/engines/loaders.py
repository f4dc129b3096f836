"""Ways to load a model's files, and what each serving engine is told for each. Pure."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tasks.core.serving import Loader

_TABLE = Path(__file__).parent / "data" / "loaders.toml"


LIBRARIES = (Loader.SAFETENSORS, Loader.FASTSAFETENSORS, Loader.RUNAI_STREAMER)
"""Those that need an environment of their own; they read safetensors only."""


def load_arguments(engine: str, loader: Loader) -> tuple[str, ...] | None:
    """What the engine's command line takes to load by `loader`; None where it cannot."""
    found = [row.arguments for row in _table() if (row.engine, row.loader) == (engine, loader)]
    return found[0] if found else None


def engines_with(loader: Loader, file_format: str) -> dict[str, tuple[str, ...]]:
    """The engines that can load files of this format so, each with what it is told."""
    return {
        row.engine: row.arguments for row in _table() if (row.loader, row.format) == (loader, file_format)
    }


@dataclass(frozen=True)
class _Row:
    engine: str
    loader: Loader
    format: str
    arguments: tuple[str, ...]


@cache
def _table() -> tuple[_Row, ...]:
    rows = tomllib.loads(_TABLE.read_text())["row"]
    return tuple(
        _Row(row["engine"], Loader(row["loader"]), row["format"], tuple(row["arguments"])) for row in rows
    )
