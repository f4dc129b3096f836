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
from tasks.core.spec import CandidateFormat

_REFUSED, _FULL = 2, 3


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
        raise ModelError(f"{model_dir} cannot become {form}: {answer['refused']}", fix=answer.get("fix"))
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
    """By tensor: how far the candidate's values are from the baseline's, in deviations of the baseline's.

    None where they cannot be compared. Raises `CommandError`.
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
