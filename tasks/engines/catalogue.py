"""All engines, by kind: an engine is a card, and the module of the same name if it can be deployed."""

from __future__ import annotations

import functools
import importlib
import re

from tasks.core.serving import Loader
from tasks.core.spec_kinds import EngineKind
from tasks.engines.base import Engine
from tasks.engines.card import read_card


@functools.cache
def get_engine(kind: EngineKind) -> Engine:
    """The engine of that kind."""
    if read_card(kind).missing is not None:
        return Engine(kind)
    module = importlib.import_module(f"tasks.engines.{re.sub(r'[-.]', '_', kind)}")
    found: type[Engine] = module.ENGINE
    return found(kind)


def deployable_engines() -> tuple[Engine, ...]:
    """The engines that can be deployed."""
    return tuple(get_engine(kind) for kind in EngineKind if read_card(kind).missing is None)


def engines_with(loader: Loader, file_format: str) -> dict[str, tuple[str, ...]]:
    """The engines that can load files of this format by `loader`, each with what its command line takes."""
    return {
        kind.value: row.arguments
        for kind in EngineKind
        for row in read_card(kind).loader
        if (row.name, row.format) == (loader, file_format)
    }
