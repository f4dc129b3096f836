"""What load requests ask: prompts drawn from a pool, and how an engine is asked for an exact number of tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

from blocks.engine.api import EngineApi
from blocks.engine.tokens import llama_cpp_tokens, vllm_tokens
from blocks.engine.vectors import EMBEDDINGS, RERANK
from tasks.core.errors import EngineError
from tasks.core.model_task import Task
from tasks.core.serving import ServingConfig
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


def ask_in_words(model: str, prompt: Sequence[Any], tokens: int) -> dict[str, Any]:
    """A request as TensorRT-LLM accepts it: it refuses unknown fields, and has no `/tokenize`."""
    return {**ask_in_tokens(model, (), tokens), "prompt": " ".join(map(str, prompt))}


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


def embed_tokens(model: str, prompt: Sequence[Any], _tokens: int) -> dict[str, Any]:
    """A request for the embedding of one text, which is a list of token ids."""
    return {"model": model, "input": list(prompt)}


def rank_words(model: str, prompt: Sequence[Any], _tokens: int) -> dict[str, Any]:
    """A request for the score of one document: the first quarter of the words is the query."""
    cut = len(prompt) // 4 or 1
    query, document = (" ".join(map(str, part)) for part in (prompt[:cut], prompt[cut:]))
    return {"model": model, "query": query, "documents": [document or query]}


COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"

_FEWEST_WORDS = 4
"""Of a message: enough that no two of a run are alike."""
_CALIBRATED = 16
_SHORT_WORDS = "a b c d e f g h i k l m n o p s t the and of to in is it as at on or"


@dataclass(frozen=True)
class Asking:
    """How an engine is asked: prompts are drawn from `pool`, requests are made by `body` and sent to `path`.

    Every prompt has `added` more tokens, and at least `fewest` in all, because a chat template puts text around it.
    Answers that are `whole` come in one piece.
    """

    pool: Pool
    body: Body
    path: str = COMPLETIONS
    added: int = 0
    fewest: int = 1
    whole: bool = False

    def prompt_tokens(self, wanted: int) -> int:
        """Tokens of a prompt of which `wanted` were asked for."""
        return max(wanted, self.fewest)


def asking_in_chat(card: EngineCard, api: EngineApi, model: str) -> Asking:
    """How a model with a chat template is asked for prompts of an exact length, by the engine's own count.

    A message's tokens and those that the template adds are taken from the engine's usage. Raises `EngineError`.
    """
    tokens = _tokens_of(card, api, model)
    words = _whole_words(tokens) if tokens else _STOCK.split()
    bare = api.chat(model, _FIRST, 1).prompt_tokens
    drawn = [words[number % len(words)] for number in range(_CALIBRATED)]
    per_word = (api.chat(model, _message(drawn), 1).prompt_tokens - bare) / _CALIBRATED
    if per_word <= 0:
        raise EngineError(
            f"{api.base_url} counts {bare} tokens for any message: its chat template drops what users say"
        )
    finish = ask_in_plain_message if card.prompts == "text" else ask_in_message

    def body(name: str, prompt: Sequence[Any], wanted: int) -> dict[str, Any]:
        count = max(_FEWEST_WORDS, round((len(prompt) - bare) / per_word))
        return finish(name, _message(list(islice(cycle(prompt), count))), wanted)

    return Asking(words, body, CHAT, added=bare, fewest=bare + math.ceil(_FEWEST_WORDS * per_word))


def ask_in_message(model: str, message: str, tokens: int) -> dict[str, Any]:
    """A chat request as most engines accept it."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": message}],
        "max_tokens": tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def ask_in_plain_message(model: str, message: str, tokens: int) -> dict[str, Any]:
    """A chat request as Transformers serve accepts it."""
    request = ask_in_text(model, (), tokens)
    del request["prompt"]
    return {**request, "messages": [{"role": "user", "content": message}]}


_FIRST = "Say"


def _message(words: Sequence[Any]) -> str:
    """The first word is always the same: without a space before it, it may be other tokens than elsewhere."""
    return " ".join([_FIRST, *map(str, words)])


def _tokens_of(card: EngineCard, api: EngineApi, model: str) -> Callable[[str], Sequence[Any]] | None:
    """What counts the tokens of a text; None for an engine that does not tell."""
    match card.prompts:
        case "llama.cpp-tokens":
            return lambda text: llama_cpp_tokens(api, text)
        case "vllm-tokens":
            return lambda text: vllm_tokens(api, model, text)
        case _:
            return None


def _whole_words(tokens: Callable[[str], Sequence[Any]]) -> list[str]:
    """Words that are one token in the middle of a text; all words if the vocabulary has too few of them."""
    words = list(dict.fromkeys(f"{_STOCK} {_SHORT_WORDS}".split()))
    bare = len(tokens(_FIRST))
    whole = [word for word in words if len(tokens(f"{_FIRST} {word} {word}")) == bare + 2]
    return whole if len(whole) >= _CALIBRATED else words


def asking_for_scores(card: EngineCard, api: EngineApi, model: str) -> Asking:
    """How a ranker is asked. It takes texts, and words that are several tokens count as so many. Raises
    `EngineError`."""
    tokens = _tokens_of(card, api, model)
    words = _whole_words(tokens) if tokens else _STOCK.split()
    per_word = max(1.0, len(tokens(" ".join(words))) / len(words)) if tokens else 1.0

    def body(name: str, prompt: Sequence[Any], wanted: int) -> dict[str, Any]:
        return rank_words(name, prompt[: max(2, int(len(prompt) / per_word))], wanted)

    return Asking(words, body, RERANK, whole=True)


def asking_for(card: EngineCard, api: EngineApi, config: ServingConfig) -> Asking:
    """How users of this model ask. Raises `EngineError`."""
    if config.task is Task.EMBED:
        return Asking(prompts_for(card, api, config.served_name)[0], embed_tokens, EMBEDDINGS, whole=True)
    if config.task is Task.RERANK:
        return asking_for_scores(card, api, config.served_name)
    if config.chat:
        return asking_in_chat(card, api, config.served_name)
    return Asking(*prompts_for(card, api, config.served_name))


def prompts_for(card: EngineCard, api: EngineApi, model: str) -> tuple[Pool, Body]:
    """The pieces that prompts are drawn from, and what makes a request of them. Raises `EngineError`."""
    match card.prompts:
        case "llama.cpp-tokens":
            return [token.id for token in llama_cpp_tokens(api, _STOCK)], ask_in_tokens
        case "vllm-tokens":
            return vllm_tokens(api, model, _STOCK), ask_in_tokens
        case "words":
            return _STOCK.split(), ask_in_words
        case _:
            return _STOCK.split(), ask_in_text
