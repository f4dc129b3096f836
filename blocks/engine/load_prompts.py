"""What the prompts of load requests are made of, and how an engine wants them."""

from __future__ import annotations

from collections.abc import Sequence

from blocks.engine.api import EngineApi
from blocks.engine.completion_dialects import TOKENS, WORDS, Dialect
from blocks.engine.tokens import llama_cpp_tokens, vllm_tokens
from tasks.core.spec import EngineKind

_STOCK = " ".join(
    f"{first}{second}"
    for first in ("the ", "a ", "one ", "my ")
    for second in (
        "ship lies at the quay",
        "crane lifts a crate",
        "pilot reads the tide",
        "rope holds fast",
        "wind turns north",
        "harbour is closed at night",
        "cargo was weighed twice",
        "light shows green",
        "tug pulls 42 barges away",
    )
)
"""What they say does not matter, only that they differ: their pieces are drawn at random."""


def prompts_for(
    kind: EngineKind, api: EngineApi, model: str
) -> tuple[Sequence[int] | Sequence[str], Dialect]:
    """The pieces that prompts are drawn from, and how requests are worded. Raises `EngineError`."""
    if kind is EngineKind.TRANSFORMERS:
        return _STOCK.split(), WORDS
    if kind is EngineKind.LLAMA_CPP:
        return [token.id for token in llama_cpp_tokens(api, _STOCK)], TOKENS
    return vllm_tokens(api, model, _STOCK), TOKENS
