"""Log-probabilities of a given text under a served model, through llama.cpp's own HTTP interface.

`/completion` returns probabilities of the tokens that it generates, not of the prompt. A grammar that allows exactly
one sequence of tokens makes it generate the text. It reports the probabilities from before the grammar is applied.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from blocks.engine.api import EngineApi
from blocks.engine.tokens import Token, llama_cpp_tokens, text_prefix
from tasks.core.cancellation import current
from tasks.core.errors import EngineError
from tasks.quantization.models import Score
from tasks.quantization.quality import LIKELIEST

Item = TypeVar("Item")
R = TypeVar("R")


def in_slots(items: Sequence[Item], slots: int, work: Callable[[Item, int], R]) -> list[R]:
    """What `work` makes of each item and its slot, in order, `slots` at a time, until the run is cancelled."""
    done: list[R] = []
    with ThreadPoolExecutor(slots) as pool:
        for start in range(0, len(items), slots):
            current().check()
            done += pool.map(work, items[start : start + slots], range(slots))
    return done


def score_windows(api: EngineApi, windows: Sequence[Sequence[Token]], *, slots: int) -> list[Score]:
    """Scores of the windows' tokens, in order. `slots` windows are scored at a time.

    The first token of a window, and tokens that begin or end inside a character, are context only. Raises
    `EngineError` if the engine does not return numbers, or returns other tokens than the text's.
    """
    prefix = text_prefix(partial(llama_cpp_tokens, api))
    found = in_slots(windows, slots, lambda one, slot: score_window(api, [*prefix, *one], slot))
    return [score for scores in found for score in scores]


def score_window(api: EngineApi, window: Sequence[Token], slot: int, *, start: int = 1) -> list[Score]:
    """Scores of one window's whole tokens from the token `start` on. Raises `EngineError`."""
    scores: list[Score] = []
    ids = [token.id for token in window]
    for begin, end in whole_runs(window, start):
        scores += _score_run(api, ids[:begin], ids[begin:end], slot)
    return scores


def whole_runs(window: Sequence[Token], first: int = 1) -> Iterator[tuple[int, int]]:
    """Runs `[start, end)` of whole tokens, from the token `first` on."""
    start: int | None = None
    for index in range(first, len(window)):
        if window[index].whole and start is None:
            start = index
        if not window[index].whole and start is not None:
            yield start, index
            start = None
    if start is not None:
        yield start, len(window)


def _score_run(api: EngineApi, prompt: Sequence[int], forced: Sequence[int], slot: int) -> list[Score]:
    answer = api.post(
        "/completion",
        {
            "prompt": list(prompt),
            "grammar": "root ::= " + " ".join(f"<[{token}]>" for token in forced),
            "n_predict": len(forced),
            "n_probs": LIKELIEST,
            "temperature": 0,
            "top_k": 1,
            "samplers": ["top_k"],
            "cache_prompt": True,
            "id_slot": slot,
        },
    )
    try:
        found = [_score(item) for item in answer["completion_probabilities"]]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise EngineError(f"{api.base_url} did not return probabilities: {str(answer)[:200]}") from error
    if [score.token for score in found] != list(forced):
        raise EngineError(f"{api.base_url} did not return the forced tokens")
    return found


def _score(item: dict[str, Any]) -> Score:
    likeliest = item["top_logprobs"]
    return Score(
        token=int(item["id"]),
        logprob=number_or_nan(item["logprob"]),
        ids=array("i", [int(likeliest[0]["id"]), *(int(one["id"]) for one in likeliest[1:])]),
        logprobs=array("f", [number_or_nan(one["logprob"]) for one in likeliest]),
    )


def number_or_nan(value: float | None) -> float:
    """A number from JSON, in which null stands for NaN."""
    return math.nan if value is None else float(value)
