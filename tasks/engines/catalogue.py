"""All engines, by kind."""

from __future__ import annotations

from tasks.core.spec import EngineKind
from tasks.engines.base import Engine
from tasks.engines.llama_cpp import LlamaCpp

_ENGINES: dict[EngineKind, Engine] = {EngineKind.LLAMA_CPP: LlamaCpp()}


def get_engine(kind: EngineKind) -> Engine:
    """The engine of that kind."""
    return _ENGINES[kind]
