"""Answers of a served model to a user's task items, through llama.cpp's own HTTP interface."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from blocks.candidates.llama_cpp_scores import in_slots, score_window
from blocks.engine.api import EngineApi
from blocks.engine.tokens import Token, llama_cpp_tokens, text_prefix
from tasks.core.errors import EngineError, SpecError
from tasks.quantization.models import TaskItem
from tasks.quantization.task_set import is_exact, is_likeliest

ROOM = 4
"""Tokens generated beyond those of the expected text: the model may cut words otherwise."""


def answer_items(api: EngineApi, task_items: Sequence[TaskItem], *, window: int, slots: int) -> list[bool]:
    """Whether the model answers each task item correctly, in order.

    An item with `expected` is correct if greedy decoding begins with that text; an item with `choices`, if the
    right choice is the likeliest continuation. Raises `SpecError` for an item longer than `window` tokens, and
    `EngineError` if the engine gives no answer.
    """
    prefix = text_prefix(partial(llama_cpp_tokens, api))

    def answer(numbered: tuple[int, TaskItem], slot: int) -> bool:
        number, item = numbered
        return _answer(api, item, prefix, slot, window, number)

    return in_slots(list(enumerate(task_items)), slots, answer)


def _answer(
    api: EngineApi, item: TaskItem, prefix: Sequence[Token], slot: int, window: int, number: int
) -> bool:
    prompt = [*prefix, *llama_cpp_tokens(api, item.prompt)]
    if item.expected is not None:
        wanted = len(llama_cpp_tokens(api, item.expected)) + ROOM
        check_length(len(prompt) + wanted, window, number)
        return is_exact(item, _generate(api, prompt, wanted, slot))
    logprobs = []
    for choice in item.choices:
        whole = [*prefix, *llama_cpp_tokens(api, item.prompt + choice)]
        check_length(len(whole), window, number)
        scores = score_window(api, whole, slot, start=max(1, shared(prompt, whole)))
        logprobs.append(math.fsum(score.logprob for score in scores))
    return is_likeliest(item, logprobs)


def check_length(tokens: int, window: int, number: int) -> None:
    """Raise `SpecError` for the task item at index `number` if it takes more tokens than a window has."""
    if tokens > window:
        raise SpecError(
            f"task {number + 1} of tuning.task_set takes {tokens} tokens, but a request may take at most {window}",
            fix="raise tuning.context, or shorten the task",
        )


def shared(ours: Sequence[object], theirs: Sequence[object]) -> int:
    """How many tokens both have in common at their beginning: a prompt's last token may merge with what follows."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(ours), len(theirs)))


def _generate(api: EngineApi, prompt: Sequence[Token], tokens: int, slot: int) -> str:
    answer = api.post(
        "/completion",
        {
            "prompt": [token.id for token in prompt],
            "n_predict": tokens,
            "temperature": 0,
            "top_k": 1,
            "samplers": ["top_k"],
            "cache_prompt": True,
            "id_slot": slot,
        },
    )
    text = answer.get("content") if isinstance(answer, dict) else None
    if not isinstance(text, str):
        raise EngineError(f"{api.base_url} did not return text: {str(answer)[:200]}")
    return text
