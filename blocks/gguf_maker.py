"""Makes GGUF files: runs the converter inside the engine's environment."""

from __future__ import annotations

import errno
import json
from pathlib import Path

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


def _answer(text: str) -> dict[str, str]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
