"""What the scoring script writes, read back; and answers that are none."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest

from blocks.candidates.transformers_scores import LibraryScorer, read_answers
from tasks.core.errors import EngineError, SpecError
from tasks.quantization.models import TaskItem, TrialPlan

WINDOW = {
    "ids": [7, 8],
    "logprobs": [-0.5, -2.0],
    "top_ids": [[7, 1], [3, 8]],
    "top_logprobs": [[-0.5, -1.0], [-0.1, -2.0]],
}
EXACT = TaskItem(prompt="a", expected="b")
CHOICE = TaskItem(prompt="a", choices=("x", "y"), answer=1)


def test_scores_and_answers_are_read_in_order() -> None:
    lines: list[dict[str, Any]] = [
        WINDOW,
        WINDOW,
        {"length": 3, "text": " b then more"},
        {"length": 3, "logprobs": [-1.0, -2.0]},
    ]
    scores, answers = read_answers(iter(lines), [EXACT, CHOICE], 256)
    assert [score.token for score in scores] == [7, 8, 7, 8]
    assert (scores[1].logprob, scores[1].top, list(scores[1].ids)) == (-2.0, 3, [3, 8])
    assert answers == [True, False]


def test_numbers_that_are_none_are_kept_for_the_judgement() -> None:
    (score, _), _ = read_answers(iter([WINDOW | {"logprobs": [math.nan, -1.0]}]), [], 256)
    assert math.isnan(score.logprob)


@pytest.mark.parametrize(
    "line", [{"ids": [1]}, WINDOW | {"top_ids": [[7, 1]]}, {"length": 3}, {"text": "b"}, {"length": None}]
)
def test_other_lines_are_a_fault_of_the_engine(line: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="did not return numbers"):
        read_answers(iter([line]), [EXACT], 256)


def test_every_exercise_is_answered_or_too_long() -> None:
    with pytest.raises(EngineError, match="only 0 of 1 tasks were answered"):
        read_answers(iter([WINDOW]), [EXACT], 256)
    with pytest.raises(SpecError, match=r"task 1 of tuning.task_set takes 300 tokens"):
        read_answers(iter([{"length": 300}]), [EXACT], 256)


def test_a_script_that_fails_says_its_last_words(tmp_path: Path) -> None:
    script = tmp_path / "score.py"
    script.write_text("import sys; sys.exit('cannot load this')")
    scorer = LibraryScorer(Path(sys.executable), script, threads=1)
    with pytest.raises(EngineError, match=r"scoring a text with /m failed \(exit status 1\)") as failed:
        scorer.score(Path("/m"), TrialPlan(text="text", tokens=8, window=8))
    assert failed.value.detail == "cannot load this"
