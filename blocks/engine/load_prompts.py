"""What load requests ask: prompts drawn from a pool, and how an engine is asked for an exact number of tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from blocks.engine.api import EngineApi
from blocks.engine.tokens import llama_cpp_tokens, vllm_tokens
from tasks.engines.card import EngineCard

Pool = Sequence[int] | Sequence[str]
Body = Callable[[str, Sequence[Any], int], dict[str, Any]]
"""Makes a streaming request of a model's name, a prompt's pieces and the number of tokens wanted."""

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


def ask_in_tokens(model: str, prompt: Sequence[Any], tokens: int) -> dict[str, Any]:
    """A request as vLLM and llama.cpp accept it: the prompt is a list of token ids."""
    return {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def ask_in_text(model: str, prompt: Sequence[Any], tokens: int) -> dict[str, Any]:
    """A request as Transformers serve accepts it: it refuses unknown fields, and sends no end mark."""
    length = {"min_new_tokens": tokens, "max_new_tokens": tokens, "do_sample": False}
    return {
        "model": model,
        "prompt": " ".join(str(word) for word in prompt),
        "max_tokens": tokens,
        "stream": True,
        "generation_config": json.dumps(length),
    }


def prompts_for(card: EngineCard, api: EngineApi, model: str) -> tuple[Pool, Body]:
    """The pieces that prompts are drawn from, and what makes a request of them. Raises `EngineError`."""
    match card.prompts:
        case "llama.cpp-tokens":
            return [token.id for token in llama_cpp_tokens(api, _STOCK)], ask_in_tokens
        case "vllm-tokens":
            return vllm_tokens(api, model, _STOCK), ask_in_tokens
        case _:
            return _STOCK.split(), ask_in_text
