"""A workbench for candidates that are model folders: made by a quantizer, scored, and served."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from blocks.completion_dialects import TOKENS, WORDS, Dialect
from blocks.engine_api import EngineApi
from blocks.engine_bench import STOCK, check_gpu, decoding_speeds, watching
from blocks.engine_process import RunningEngine, serve
from blocks.folder_maker import compare_folders, make_folder
from blocks.library_scores import LibraryScorer
from blocks.load_client import LoadClient
from blocks.prompt_logprobs import PromptScorer
from tasks.core.prefetch import Prefetch, no_prefetch
from tasks.core.serving import ServingConfig
from tasks.core.spec import CandidateFormat, EngineKind
from tasks.engines.base import Engine
from tasks.quantization.folder_sizes import PLAIN
from tasks.quantization.models import Calibration, Exercise, Score, Trial

_NAME = "slipway-tuning"
_ANSWER_S = 600.0
_Scored = tuple[list[Score], list[bool]]


@dataclass(frozen=True)
class FolderBench:
    """One engine in its environment, and the quantizer's Python where a format needs it.

    Implements `tasks.quantization.apply.CandidateBench`. `scorer` is the script that scores a text where the
    engine's interface does not; with `gpus` it and the engine compute there.
    """

    engine: Engine
    python: Path
    scorer: Path
    threads: int
    gpus: int = 0
    quantizer: Path | None = None
    calibration: Calibration | None = None
    start_timeout_s: float = 600.0
    silence_s: float = 60.0
    prefetch: Prefetch = no_prefetch

    def convert(self, worker: Path, model_dir: Path, form: CandidateFormat, out: Path) -> None:
        """As the quantization stage's `CandidateBench` says."""
        python = self.python if form in PLAIN else self.quantizer
        assert python is not None  # the flow builds it for any format that needs it
        calibration = self.calibration if form is CandidateFormat.W4A16 else None
        make_folder(python, worker, model_dir, form, out, threads=self.threads, calibration=calibration)

    def compare_weights(self, worker: Path, baseline: Path, candidate: Path) -> dict[str, float | None]:
        """As the quantization stage's `CandidateBench` says."""
        return compare_folders(self.python, worker, baseline, candidate)

    def try_candidate(
        self,
        model: Path,
        log: Path,
        *,
        text: str | None,
        tokens: int,
        window: int,
        slots: int,
        exercises: Sequence[Exercise] = (),
    ) -> Trial:
        """As the quantization stage's `CandidateBench` says.

        What the engine's library scores it scores before the engine is started: each would take the processor, or the
        GPU's memory, from the other.
        """
        scored: _Scored = ([], [])
        by_library = self.engine.card.scored_by == "library"
        if by_library and (text is not None or exercises):
            scorer = LibraryScorer(self.python, self.scorer, self.threads, on_gpus=self.gpus > 0)
            scored = scorer.score(model, text, exercises, tokens=tokens, window=window)
        with self._serve(model, log, slots, window) as (served, name), self._api(served) as api:
            if not by_library:
                through = PromptScorer(api, name)
                scores = through.score_text(text, tokens=tokens, window=window, slots=slots) if text else []
                scored = scores, through.answer(exercises, window=window)
            pool, dialect = self._prompts(api, name)
            client = LoadClient(served.base_url, name, pool, dialect)
            speeds = decoding_speeds(client, window, silence_s=self.silence_s)
        scores, answers = scored
        return Trial(scores=tuple(scores), answers=tuple(answers), tokens_per_s=speeds)

    def _api(self, served: RunningEngine) -> EngineApi:
        return EngineApi(served.base_url, timeout_s=_ANSWER_S)

    def _prompts(self, api: EngineApi, name: str) -> tuple[Sequence[int] | Sequence[str], Dialect]:
        if self.engine.kind is EngineKind.TRANSFORMERS:
            return STOCK.split(), WORDS
        return PromptScorer(api, name).tokens(STOCK), TOKENS

    @contextlib.contextmanager
    def _serve(self, model: Path, log: Path, slots: int, window: int) -> Iterator[tuple[RunningEngine, str]]:
        config = ServingConfig(
            served_name=_NAME, batch=slots, context=window + 8, threads=self.threads, gpus=self.gpus
        )
        name = self.engine.api_model(str(model), config)
        with serve(
            self.engine.command(str(self.python), "", str(model), config),
            served_name=name,
            log=log,
            start_timeout_s=self.start_timeout_s,
            maps=sorted(model.glob("*.safetensors")) if self.engine.maps_files else (),
            prefetch=self.prefetch,
        ) as served:
            if self.gpus:
                check_gpu(served)
            with watching(served):
                yield served, name
