"""A user's task set: what is taken, and what is refused in one line."""

from __future__ import annotations

import pytest
from inline_snapshot import snapshot

from tasks.core.errors import SpecError
from tasks.quantization.models import TaskItem
from tasks.quantization.task_set import is_exact, is_likeliest, parse_task_set

GOOD = """\
{"prompt": "2 + 2 =", "expected": "4"}

{"prompt": "The opposite of hot is", "choices": [" cold", " warm"], "answer": 0}
"""


def test_both_kinds_are_read() -> None:
    assert parse_task_set(GOOD, "tasks.jsonl") == (
        TaskItem(prompt="2 + 2 =", expected="4"),
        TaskItem(prompt="The opposite of hot is", choices=(" cold", " warm"), answer=0),
    )


def refusal(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        parse_task_set(text, "tasks.jsonl")
    return caught.value.what


def test_wrong_lines_are_named() -> None:
    lines = {
        "empty": "\n",
        "no JSON": GOOD + "oops",
        "no object": "[1]",
        "unknown key": '{"prompt": "a", "expected": "b", "anwser": 1}',
        "neither": '{"prompt": "a"}',
        "both": '{"prompt": "a", "expected": "b", "choices": ["b", "c"]}',
        "one choice": '{"prompt": "a", "choices": ["b"]}',
        "answer": '{"prompt": "a", "choices": ["b", "c"], "answer": 2}',
    }
    assert {name: refusal(line) for name, line in lines.items()} == snapshot(
        {
            "empty": "tasks.jsonl contains no tasks",
            "no JSON": "tasks.jsonl:4 is not JSON",
            "no object": "tasks.jsonl:1: the line: Input should be a valid dictionary or instance of TaskItem",
            "unknown key": "tasks.jsonl:1: anwser: Extra inputs are not permitted",
            "neither": "tasks.jsonl:1 needs exactly one of expected and choices",
            "both": "tasks.jsonl:1 needs exactly one of expected and choices",
            "one choice": "tasks.jsonl:1 needs at least two choices, none of them empty",
            "answer": "tasks.jsonl:1: answer must be from 0 to 1, not 2",
        }
    )


def test_answers_are_marked() -> None:
    exact = TaskItem(prompt="2 + 2 =", expected="4")
    assert is_exact(exact, " 4\n5")
    assert is_exact(exact, "4, as you know")
    assert not is_exact(exact, " 42")
    choice = TaskItem(prompt="a", choices=("b", "c"), answer=1)
    assert is_likeliest(choice, [-3.0, -2.0])
    assert not is_likeliest(choice, [-1.0, -2.0])
