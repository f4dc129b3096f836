"""How a text is cut into what a grammar can force, and answers that are none."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.candidates.llama_cpp_scores import score_windows, whole_runs
from blocks.engine.api import EngineApi
from blocks.engine.tokens import Token, llama_cpp_tokens
from tasks.core.errors import EngineError


class CannedApi(EngineApi):
    """Answers from a table, and keeps what was asked."""

    def __init__(self, **answers: Any) -> None:
        super().__init__("http://127.0.0.1:1")
        self.answers = answers
        self.asked: list[dict[str, Any]] = []

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(body)
        answer = self.answers[path.strip("/")]
        found: dict[str, Any] = answer(body) if callable(answer) else answer
        return found


def letters(body: dict[str, Any]) -> dict[str, Any]:
    return {"tokens": [{"id": ord(letter), "piece": letter} for letter in body["content"]]}


def even(body: dict[str, Any]) -> dict[str, Any]:
    forced = [int(part.strip("<[]>")) for part in body["grammar"].removeprefix("root ::= ").split()]
    return {"completion_probabilities": [answer(token, -1.0) for token in forced]}


def answer(token: int, logprob: float | None) -> dict[str, Any]:
    return {"id": token, "logprob": logprob, "top_logprobs": [{"id": 7, "logprob": -0.5}]}


def window(text: str) -> list[Token]:
    return [Token(ord(letter), letter.isascii()) for letter in text]


@given(st.lists(st.booleans(), max_size=40))
def test_runs_hold_every_whole_token_but_the_first(whole: list[bool]) -> None:
    tokens = [Token(number, flag) for number, flag in enumerate(whole)]
    runs = list(whole_runs(tokens))
    covered = [index for start, end in runs for index in range(start, end)]
    assert covered == [index for index in range(1, len(tokens)) if whole[index]]
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(runs))


def test_windows_are_scored_in_order_after_their_context() -> None:
    api = CannedApi(tokenize=letters, completion=even)
    scores = score_windows(api, [window("abéc"), window("xyz")], slots=2)
    assert [chr(score.token) for score in scores] == ["b", "c", "y", "z"]
    assert {(score.logprob, score.top) for score in scores} == {(-1.0, 7)}
    prompts = {bytes(body["prompt"]): body["id_slot"] for body in api.asked if "prompt" in body}
    assert prompts == {b"a": 0, "abé".encode("latin-1"): 0, b"x": 1}


def test_a_probability_that_is_no_number_is_kept_as_such() -> None:
    api = CannedApi(tokenize=letters, completion={"completion_probabilities": [answer(98, None)]})
    (score,) = score_windows(api, [window("ab")], slots=1)
    assert math.isnan(score.logprob)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"content": "b"}, "did not return probabilities"),
        (
            {"completion_probabilities": [{"id": 98, "logprob": -1.0, "top_logprobs": []}]},
            "did not return probabilities",
        ),
        ({"completion_probabilities": [answer(99, -1.0)]}, "did not return the forced tokens"),
        ({"completion_probabilities": []}, "did not return the forced tokens"),
    ],
)
def test_answers_that_are_none_are_faults(given: dict[str, Any], message: str) -> None:
    api = CannedApi(tokenize=letters, completion=given)
    with pytest.raises(EngineError, match=message):
        score_windows(api, [window("ab")], slots=1)


def test_parts_of_characters_are_known_by_their_pieces() -> None:
    pieces = ["a", [195], "", "\0", "é"]
    listed = [{"id": number, "piece": piece} for number, piece in enumerate(pieces)]
    found = llama_cpp_tokens(CannedApi(tokenize={"tokens": listed}), "x")
    assert [token.whole for token in found] == [True, False, False, False, True]
    with pytest.raises(EngineError, match="did not return tokens"):
        llama_cpp_tokens(CannedApi(tokenize={"tokens": [{"id": 1}]}), "x")
