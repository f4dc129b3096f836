"""A workbench for candidates that are GGUF files: made by a table of tensors, scored and served by llama.cpp."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from blocks.candidates.gguf_maker import compare_gguf, make_gguf
from blocks.candidates.llama_cpp_scores import score_windows
from blocks.candidates.task_answers import answer_exercises
from blocks.engine.api import EngineApi
from blocks.engine.bench import SCORING_S, EngineBench
from blocks.engine.tokens import Token, llama_cpp_tokens
from blocks.processes.process import last_lines
from tasks.core.errors import EngineError
from tasks.core.serving import ServingConfig
from tasks.core.spec import CandidateFormat
from tasks.engines.failures import FailureKind, failure_of
from tasks.quantization.models import Exercise, Score, Trial
from tasks.quantization.plan import MARGIN_TOKENS

_FEWER = 0.7
"""Layers that are put on GPUs after those that were out of memory, as a share of them."""

Place = Callable[[CandidateFormat, ServingConfig], ServingConfig]
"""How a candidate of a format is placed, from how it would be served without."""


def _as_configured(_: CandidateFormat, config: ServingConfig) -> ServingConfig:
    return config


@dataclass(frozen=True)
class GgufBench:
    """Implements `tasks.quantization.apply.CandidateBench`. Candidates are served as in `config`, but for batch and
    context, and for what `place` says of a format: how many of its layers are put on GPUs."""

    bench: EngineBench
    config: ServingConfig
    scoring_s: float = SCORING_S
    place: Place = _as_configured

    def convert(self, worker: Path, model_dir: Path, form: CandidateFormat, out: Path) -> None:
        """As the quantization stage's `CandidateBench` says."""
        make_gguf(self.bench.python, worker, model_dir, form, out)

    def compare_weights(self, worker: Path, baseline: Path, candidate: Path) -> dict[str, float | None]:
        """As the quantization stage's `CandidateBench` says."""
        return compare_gguf(self.bench.python, worker, baseline, candidate)

    def try_candidate(
        self,
        model: Path,
        log: Path,
        *,
        form: CandidateFormat,
        text: str | None,
        tokens: int,
        window: int,
        slots: int,
        exercises: Sequence[Exercise] = (),
    ) -> Trial:
        """As the quantization stage's `CandidateBench` says.

        Where a part of the model lies on GPUs and they run out of memory, a smaller part is put there.
        """
        asked = self.config.model_copy(update={"batch": slots, "context": window + MARGIN_TOKENS})
        config = self.place(form, asked)
        while True:
            try:
                return self._try(model, log, config, text, tokens, window, exercises)
            except EngineError as error:
                said = last_lines(log.read_text(errors="replace")) if log.exists() else ""
                out = failure_of(error, log_tail=said).kind is FailureKind.OUT_OF_MEMORY
                layers = int(config.gpu_layers * _FEWER)
                if not out or layers < 1:
                    raise
                config = config.model_copy(update={"gpu_layers": layers})

    def _try(
        self,
        model: Path,
        log: Path,
        config: ServingConfig,
        text: str | None,
        tokens: int,
        window: int,
        exercises: Sequence[Exercise],
    ) -> Trial:
        slots = config.batch
        with self.bench.serve(model, config, log) as served:
            with EngineApi(served.base_url, timeout_s=self.scoring_s) as api:
                scores = _score(api, text, tokens, window, slots) if text is not None else []
                answers = answer_exercises(api, exercises, window=window, slots=slots) if exercises else []
            speeds = self.bench.decoding_speeds(served, config, window)
        return Trial(scores=tuple(scores), answers=tuple(answers), tokens_per_s=speeds)


def _score(api: EngineApi, text: str, tokens: int, window: int, slots: int) -> list[Score]:
    found = llama_cpp_tokens(api, text)[:tokens]
    windows: list[list[Token]] = [found[start : start + window] for start in range(0, len(found), window)]
    return score_windows(api, windows, slots=slots)
