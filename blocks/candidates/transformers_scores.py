"""Score a text with a model folder, using the library that the engine serves with, in the engine's environment.

For engines whose interface gives no probabilities: what loads and computes is the same, only the server is left out.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blocks.candidates.task_answers import check_length
from blocks.processes.process import last_lines, run
from tasks.core.child_environment import Needs
from tasks.core.errors import EngineError
from tasks.core.files import PART, scratch_folder
from tasks.core.gpus import visible_only
from tasks.engines.base import PASSIVE
from tasks.quantization.models import Score, TaskItem, TrialPlan
from tasks.quantization.quality import LIKELIEST
from tasks.quantization.task_set import is_exact, is_likeliest

_BASE_S, _TOKENS_PER_S = 600.0, 1.0
"""Longest run: one token per second is far slower than any real service."""


@dataclass(frozen=True)
class LibraryScorer:
    """The scoring script in one environment, on the CPU or on the GPUs: all, or those of `gpu_indices`. With
    `trust_remote_code` the library may run code that the model brings along."""

    python: Path
    worker: Path
    threads: int
    on_gpus: bool = False
    gpu_indices: tuple[int, ...] = ()
    trust_remote_code: bool = False

    def score(self, model: Path, plan: TrialPlan) -> tuple[list[Score], list[bool]]:
        """Scores of the text's tokens, and whether each task item was answered correctly.

        Raises `EngineError` if the library cannot load or run the model, `SpecError` for a task item longer than
        a window.
        """
        asked = {
            "model": str(model),
            "device": "auto" if self.on_gpus else "cpu",
            "threads": self.threads,
            "trust_remote_code": self.trust_remote_code,
            "text": plan.text,
            "tokens": plan.tokens,
            "window": plan.window,
            "likeliest": LIKELIEST,
            "prompts": [one.model_dump(exclude={"answer"}) for one in plan.task_items],
        }
        with scratch_folder(model.with_name(f"scores{PART}")) as scratch:
            request, out = scratch / "asked.json", scratch / "scores.jsonl"
            request.write_text(json.dumps(asked))
            self._run(model, request, out, plan.tokens)
            with out.open() as file:
                lines = (json.loads(line) for line in file)
                return read_answers(lines, plan.task_items, plan.window)

    def _run(self, model: Path, request: Path, out: Path, tokens: int) -> None:
        argv: list[str | Path] = [self.python, "-I", self.worker, "--asked", request, "--out", out]
        env = {
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(self.threads),
            **PASSIVE,
            **visible_only(self.gpu_indices),
        }
        finished = run(argv, timeout_s=_BASE_S + tokens / _TOKENS_PER_S, needs=(Needs.COMPUTE,), env=env)
        if finished.code != 0:
            raise EngineError(
                f"scoring a text with {model} failed (exit status {finished.code})",
                detail=last_lines(finished.stderr),
            )


def read_answers(
    lines: Iterator[dict[str, Any]], task_items: Sequence[TaskItem], window: int
) -> tuple[list[Score], list[bool]]:
    """What the scoring script wrote. Raises `EngineError` for other lines, `SpecError` as `LibraryScorer.score`."""
    scores: list[Score] = []
    answers: list[bool] = []
    try:
        for line in lines:
            if "ids" in line:
                scores += _scores(line)
                continue
            item = task_items[len(answers)]
            check_length(line["length"], window, len(answers))
            answers.append(_is_right(item, line))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise EngineError(f"scoring a text did not return numbers: {error!r}") from error
    if len(answers) != len(task_items):
        raise EngineError(f"only {len(answers)} of {len(task_items)} tasks were answered")
    return scores, answers


def _scores(line: dict[str, Any]) -> Iterator[Score]:
    rows = zip(line["ids"], line["logprobs"], line["top_ids"], line["top_logprobs"], strict=True)
    for token, logprob, ids, logprobs in rows:
        yield Score(int(token), float(logprob), array("i", ids), array("f", logprobs))


def _is_right(item: TaskItem, line: dict[str, Any]) -> bool:
    if item.expected is not None:
        return is_exact(item, str(line["text"]))
    return is_likeliest(item, [float(one) for one in line["logprobs"]])
