"""A workbench for candidates that are model folders: made by a quantizer, scored by the engine's library, served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blocks.completion_dialects import WORDS
from blocks.engine_bench import STOCK, check_gpu, decoding_speeds
from blocks.engine_process import serve
from blocks.folder_maker import compare_folders, make_folder
from blocks.library_scores import LibraryScorer
from blocks.load_client import LoadClient
from tasks.core.prefetch import Prefetch, no_prefetch
from tasks.core.spec import CandidateFormat
from tasks.engines.base import Engine, ServingConfig
from tasks.quantization.folder_sizes import PLAIN
from tasks.quantization.models import Calibration, Exercise, Trial

_NAME = "slipway-tuning"


@dataclass(frozen=True)
class FolderBench:
    """One engine in its environment, and the quantizer's Python where a format needs it.

    Implements `tasks.quantization.apply.CandidateBench`. `scorer` is the script that scores a text; with `gpus` it
    and the engine compute there.
    """

    engine: Engine
    python: Path
    scorer: Path
    threads: int
    gpus: int = 0
    quantizer: Path | None = None
    calibration: Calibration | None = None
    start_timeout_s: float = 120.0
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
        """As the quantization stage's `CandidateBench` says. The text is scored before the engine is started: each
        would take the processor, or the GPU's memory, from the other."""
        scorer = LibraryScorer(self.python, self.scorer, self.threads, on_gpus=self.gpus > 0)
        asked = text is not None or exercises
        scores, answers = (
            scorer.score(model, text, exercises, tokens=tokens, window=window) if asked else ([], [])
        )
        speeds = self._speeds(model, log, window)
        return Trial(scores=tuple(scores), answers=tuple(answers), tokens_per_s=speeds)

    def _speeds(self, model: Path, log: Path, window: int) -> tuple[float, ...]:
        config = ServingConfig(
            served_name=_NAME, batch=1, context=window + 8, threads=self.threads, gpus=self.gpus
        )
        command = self.engine.command(str(self.python), "", str(model), config)
        name = self.engine.api_model(str(model), config)
        with serve(
            command,
            served_name=name,
            log=log,
            start_timeout_s=self.start_timeout_s,
            maps=sorted(model.glob("*.safetensors")) if self.engine.maps_files else (),
            prefetch=self.prefetch,
        ) as served:
            if self.gpus:
                check_gpu(served)
            return decoding_speeds(LoadClient(served.base_url, name, STOCK.split(), WORDS), window)
