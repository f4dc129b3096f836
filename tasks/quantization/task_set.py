"""A user's own tasks, JSON lines (docs/quantization.md): text -> task items. Pure."""

from __future__ import annotations

import json

from pydantic import ValidationError

from tasks.core.errors import SpecError
from tasks.quantization.models import TaskItem

_FIX = 'write {"prompt": …, "expected": …} or {"prompt": …, "choices": […, …], "answer": 0} on each line'


def parse_task_set(text: str, name: str) -> tuple[TaskItem, ...]:
    """One task item for each line that is not empty. Raises `SpecError` that names the first wrong line."""
    found = [
        _parse(line, f"{name}:{number}") for number, line in enumerate(text.splitlines(), 1) if line.strip()
    ]
    if not found:
        raise SpecError(f"{name} contains no tasks", fix=_FIX)
    return tuple(found)


def _parse(line: str, where: str) -> TaskItem:
    try:
        item = TaskItem.model_validate(json.loads(line))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(piece) for piece in first["loc"]) or "the line"
        raise SpecError(f"{where}: {key}: {first['msg']}", fix=_FIX) from None
    except (ValueError, RecursionError):
        raise SpecError(f"{where} is not JSON", fix=_FIX) from None
    if (item.expected is None) == (not item.choices):
        raise SpecError(f"{where} needs exactly one of expected and choices", fix=_FIX)
    if item.choices and (len(item.choices) < 2 or not all(item.choices)):
        raise SpecError(f"{where} needs at least two choices, none of them empty", fix=_FIX)
    if item.choices and not 0 <= item.answer < len(item.choices):
        raise SpecError(
            f"{where}: answer must be from 0 to {len(item.choices) - 1}, not {item.answer}", fix=_FIX
        )
    return item


def is_exact(item: TaskItem, text: str) -> bool:
    """Whether generated text begins with the expected text, apart from spaces, and a word or number ends there."""
    expected, found = (item.expected or "").strip(), text.strip()
    return found.startswith(expected) and not found[len(expected) :][:1].isalnum()


def is_likeliest(item: TaskItem, logprobs: list[float]) -> bool:
    """Whether the right choice, as a whole, is likelier than each other."""
    return max(range(len(logprobs)), key=logprobs.__getitem__) == item.answer
