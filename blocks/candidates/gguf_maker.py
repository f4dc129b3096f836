"""Makes and compares GGUF files: runs the workers inside the engine's environment."""

from __future__ import annotations

from pathlib import Path

from blocks.candidates.candidate_worker import compare, make
from tasks.core.spec import CandidateFormat

_BASE_S, _BYTES_PER_S = 120.0, 2e6
"""Longest run: far below the slowest measured rate, so that only a hung converter meets it."""


def make_gguf(python: Path, worker: Path, model_dir: Path, form: CandidateFormat, out: Path) -> None:
    """Write the model in `model_dir` as one GGUF file.

    Raises `ModelError` for a model that cannot be converted, `DiskFullError`, or `CommandError`.
    """
    timeout_s = _longest(*model_dir.glob("*.safetensors"))
    make(python, worker, model_dir, form, out, timeout_s=timeout_s)


def compare_gguf(python: Path, worker: Path, baseline: Path, candidate: Path) -> dict[str, float | None]:
    """By tensor: how far the candidate's values are from the baseline's, in deviations of the baseline's.

    None where they cannot be compared. Raises `CommandError`.
    """
    return compare(python, worker, baseline, candidate, timeout_s=_longest(baseline))


def _longest(*read: Path) -> float:
    return _BASE_S + sum(path.stat().st_size for path in read) / _BYTES_PER_S
