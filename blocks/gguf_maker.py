"""Makes and compares GGUF files: runs the workers inside the engine's environment."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

from blocks.process import last_lines, run
from tasks.core.errors import CommandError, ModelError
from tasks.core.files import as_disk_full
from tasks.core.spec import CandidateFormat

_REFUSED, _FULL = 2, 3
_BASE_S, _BYTES_PER_S = 120.0, 2e6
"""Longest run: far below the slowest measured rate, so that only a hung converter meets it."""


def make_gguf(python: Path, worker: Path, model_dir: Path, form: CandidateFormat, out: Path) -> None:
    """Write the model in `model_dir` as one GGUF file.

    Raises `ModelError` for a model that cannot be converted, `DiskFullError`, or `CommandError`.
    """
    source_bytes = sum(path.stat().st_size for path in model_dir.glob("*.safetensors"))
    argv: list[str | Path] = [
        python,
        "-I",
        worker,
        "--model",
        model_dir,
        "--format",
        form.value,
        "--out",
        out,
    ]
    finished = run(argv, timeout_s=_BASE_S + source_bytes / _BYTES_PER_S)
    if finished.code == 0:
        return
    answer = _answer(finished.stdout)
    if finished.code == _REFUSED and "refused" in answer:
        raise ModelError(f"{model_dir} cannot become {form}: {answer['refused']}", fix=answer.get("fix"))
    if finished.code == _FULL and "full" in answer:
        raise as_disk_full(OSError(errno.ENOSPC, "no space left"), out)
    raise CommandError(
        f"converting {model_dir} to {form} failed (exit status {finished.code})",
        detail=last_lines(finished.stderr),
    )


def compare_gguf(python: Path, worker: Path, baseline: Path, candidate: Path) -> dict[str, float | None]:
    """By tensor: how far the candidate's values are from the baseline's, in deviations of the baseline's.

    None where they cannot be compared. Raises `CommandError`.
    """
    argv: list[str | Path] = [python, "-I", worker, "--baseline", baseline, "--candidate", candidate]
    size = baseline.stat().st_size
    finished = run(argv, timeout_s=_BASE_S + size / _BYTES_PER_S)
    errors: Any = _answer(finished.stdout).get("errors")
    if finished.code != 0 or not isinstance(errors, dict):
        raise CommandError(
            f"comparing {candidate} with {baseline} failed (exit status {finished.code})",
            detail=last_lines(finished.stderr),
        )
    return errors


def _answer(text: str) -> dict[str, str]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
