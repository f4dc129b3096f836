"""The texts that a spec names for tuning."""

from __future__ import annotations

from pathlib import Path

from tasks.core.errors import SpecError
from tasks.core.given_files import TEXT_LIMIT_BYTES, decode_text, read_beginning, read_given
from tasks.core.spec_kinds import CandidateFormat
from tasks.core.spec_sections import Tuning
from tasks.quantization import plan
from tasks.quantization.models import Calibration, TaskItem
from tasks.quantization.task_set import parse_task_set


def read_calibration(tuning: Tuning) -> Calibration | None:
    """The text that w4a16 is fitted to. Raises `SpecError` if it cannot be read, or contains the held-out text."""
    path = tuning.calibration_text
    if path is None or CandidateFormat.W4A16 not in tuning.candidates:
        return None
    text = read_text(path, "tuning.calibration_text", tuning.calibration_tokens)
    if tuning.quality_text is not None:
        held_out = read_text(tuning.quality_text, "tuning.quality_text", tuning.quality_tokens)
        plan.check_held_out(text, held_out)
    return Calibration(text=text, tokens=tuning.calibration_tokens, window=plan.window_tokens(tuning.context))


def read_text(path: Path, key: str, tokens: int) -> str:
    """The beginning of a text, as much of it as so many tokens can need. Raises `SpecError` that names the key."""
    content = read_beginning(
        path,
        key,
        plan.text_bytes(tokens),
        fix="give the path of a text file",
        missing=SpecError,
        wrong=SpecError,
    )
    return content.decode("utf-8", errors="ignore")


def read_task_set(tuning: Tuning) -> tuple[TaskItem, ...]:
    """The tasks that the spec names; none if it names none. Raises `SpecError`."""
    path, key = tuning.task_set, "tuning.task_set"
    if path is None:
        return ()
    content = read_given(
        path,
        key,
        limit_bytes=TEXT_LIMIT_BYTES,
        fix="give the path of a file of JSON lines",
        missing=SpecError,
        wrong=SpecError,
    )
    return parse_task_set(decode_text(content, f"the {key} {path}", SpecError), path.name)
