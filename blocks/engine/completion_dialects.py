"""How engines want a streamed completion of an exact length asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Dialect:
    """`body` makes a request of a model's name, a prompt's pieces and the number of tokens wanted."""

    body: Callable[[str, Sequence[Any], int], dict[str, Any]]


def _by_tokens(model: str, prompt: Sequence[Any], tokens: int) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _by_words(model: str, prompt: Sequence[Any], tokens: int) -> dict[str, Any]:
    length = {"min_new_tokens": tokens, "max_new_tokens": tokens, "do_sample": False}
    return {
        "model": model,
        "prompt": " ".join(str(word) for word in prompt),
        "max_tokens": tokens,
        "stream": True,
        "generation_config": json.dumps(length),
    }


TOKENS = Dialect(_by_tokens)
"""vLLM's and llama.cpp's: prompts are ids of tokens."""

WORDS = Dialect(_by_words)
"""That of transformers serve, which takes text alone, refuses unknown fields, and sends no mark at the end."""
