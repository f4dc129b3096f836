"""Makes and compares candidates that are model folders: runs the workers where torch and the quantizer are."""

from __future__ import annotations

from pathlib import Path

from blocks.candidates.candidate_worker import compare, make
from tasks.core.files import PART, scratch_folder
from tasks.core.spec import CandidateFormat
from tasks.engines.base import PASSIVE
from tasks.quantization.models import Calibration

_ENV = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
_BASE_S, _BYTES_PER_S = 300.0, 1e5
_BASE_COMPARED_S, _BYTES_COMPARED_PER_S = 120.0, 2e6
"""Longest runs: far below the slowest measured rates, so that only a hung worker meets them. GPTQ on two cores made
0.5 MB of the source a second."""


def make_folder(
    python: Path,
    worker: Path,
    model_dir: Path,
    form: CandidateFormat,
    out: Path,
    *,
    threads: int,
    calibration: Calibration | None = None,
) -> None:
    """Write the model in `model_dir` as a folder in that format.

    Raises `ModelError` for a model that cannot be converted, `DiskFullError`, or `CommandError`.
    """
    limit = _BASE_S + weights_bytes(model_dir) / _BYTES_PER_S
    options: list[str | Path] = []
    env = {**_ENV, **PASSIVE, "OMP_NUM_THREADS": str(threads)}
    with scratch_folder(out.with_name(f"calibration{PART}")) as scratch:
        if calibration is not None:
            text = scratch / "calibration.txt"
            text.write_text(calibration.text)
            options += ["--calibration", text, "--tokens", str(calibration.tokens)]
            options += ["--window", str(calibration.window)]
        make(python, worker, model_dir, form, out, timeout_s=limit, options=options, env=env)


def compare_folders(python: Path, worker: Path, baseline: Path, candidate: Path) -> dict[str, float | None]:
    """By tensor: how far the candidate's values are from the baseline's, in deviations of the baseline's.

    None where they cannot be compared. Raises `CommandError`.
    """
    limit = _BASE_COMPARED_S + weights_bytes(baseline) / _BYTES_COMPARED_PER_S
    return compare(python, worker, baseline, candidate, timeout_s=limit)


def weights_bytes(folder: Path) -> int:
    """Bytes of a model folder's weights."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
