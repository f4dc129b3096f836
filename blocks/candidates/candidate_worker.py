"""Runs the scripts that make and compare candidates, and reads their answers."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blocks.processes.process import Finished, last_lines, run
from tasks.core.child_environment import Needs
from tasks.core.disk_faults import as_disk_fault, fault_told
from tasks.core.errors import CommandError, ModelError
from tasks.core.files import PART, scratch_folder
from tasks.core.spec_kinds import CandidateFormat
from tasks.engines.base import PASSIVE
from tasks.quantization.models import Calibration

_REFUSED, _FULL = 2, 3
_ENV = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
_BASE_S, _BYTES_PER_S = 300.0, 1e5
_BASE_COMPARED_S, _BYTES_COMPARED_PER_S = 120.0, 2e6
_GGUF_BASE_S, _GGUF_BYTES_PER_S = 120.0, 2e6
"""Longest runs: far below the slowest measured rates, so that only a hung worker meets them. GPTQ on two cores made
0.5 MB of the source a second."""


def make(
    python: Path,
    worker: Path,
    model_dir: Path,
    form: CandidateFormat,
    out: Path,
    *,
    timeout_s: float,
    options: Sequence[str | Path] = (),
    env: Mapping[str, str | None] | None = None,
) -> None:
    """Run a script that writes the model in `model_dir` to `out` in that format.

    Raises `ModelError` for a model that cannot be converted, `DiskError`, or `CommandError`.
    """
    asked = ("--model", model_dir, "--format", form.value, "--out", out, *options)
    finished = run((python, "-I", worker, *asked), timeout_s=timeout_s, needs=(Needs.COMPUTE,), env=env)
    if finished.code == 0:
        return
    answer = _answer(finished.stdout)
    if finished.code == _REFUSED and "refused" in answer:
        raise ModelError(
            f"{model_dir} cannot be converted to {form}: {answer['refused']}", fix=answer.get("fix")
        )
    if finished.code == _FULL and "full" in answer:
        raise as_disk_fault(OSError(errno.ENOSPC, "no space left"), out)
    _check_disk(finished, out)
    raise CommandError(
        f"converting {model_dir} to {form} failed (exit status {finished.code})",
        detail=last_lines(finished.stderr),
    )


def compare(
    python: Path, worker: Path, baseline: Path, candidate: Path, *, timeout_s: float
) -> dict[str, float | None]:
    """For each tensor, how far the candidate's values are from the baseline's, in the baseline's standard deviations.

    None if they cannot be compared. Raises `CommandError`.
    """
    argv: list[str | Path] = [python, "-I", worker, "--baseline", baseline, "--candidate", candidate]
    finished = run(argv, timeout_s=timeout_s, needs=(Needs.COMPUTE,))
    errors: Any = _answer(finished.stdout).get("errors")
    if finished.code != 0 or not isinstance(errors, dict):
        _check_disk(finished, candidate)
        raise CommandError(
            f"comparing {candidate} with {baseline} failed (exit status {finished.code})",
            detail=last_lines(finished.stderr),
        )
    return errors


def make_gguf(
    python: Path,
    worker: Path,
    model_dir: Path,
    form: CandidateFormat,
    out: Path,
    options: Sequence[str] = (),
) -> None:
    """Write the model in `model_dir` as one GGUF file.

    Raises `ModelError` for a model that cannot be converted, `DiskFullError`, or `CommandError`.
    """
    timeout_s = _longest(*model_dir.glob("*.safetensors"))
    make(python, worker, model_dir, form, out, timeout_s=timeout_s, options=options)


def compare_gguf(python: Path, worker: Path, baseline: Path, candidate: Path) -> dict[str, float | None]:
    """For each tensor, how far the candidate's values are from the baseline's, in the baseline's standard deviations.

    None if they cannot be compared. Raises `CommandError`.
    """
    return compare(python, worker, baseline, candidate, timeout_s=_longest(baseline))


def _longest(*read: Path) -> float:
    return _GGUF_BASE_S + sum(path.stat().st_size for path in read) / _GGUF_BYTES_PER_S


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
    """For each tensor, how far the candidate's values are from the baseline's, in the baseline's standard deviations.

    None if they cannot be compared. Raises `CommandError`.
    """
    limit = _BASE_COMPARED_S + weights_bytes(baseline) / _BYTES_COMPARED_PER_S
    return compare(python, worker, baseline, candidate, timeout_s=limit)


def weights_bytes(folder: Path) -> int:
    """Bytes of a model folder's weights."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _check_disk(finished: Finished, path: Path) -> None:
    """A script that died of its disk says nothing about the format that it worked on."""
    if fault := fault_told(last_lines(finished.stderr), path):
        raise fault


def _answer(text: str) -> dict[str, str]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
