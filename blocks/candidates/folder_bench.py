"""A workbench for candidates that are model folders: made by a quantizer, scored, and served."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from blocks.candidates.candidate_worker import compare_folders, make_folder
from blocks.candidates.transformers_scores import LibraryScorer
from blocks.candidates.vllm_scores import PromptScorer
from blocks.candidates.whole_answers import whole_answers
from blocks.engine.api import EngineApi
from blocks.engine.bench import SCORING_S, EngineBench
from tasks.core.model_task import Task
from tasks.core.serving import ServingConfig
from tasks.core.spec_kinds import CandidateFormat
from tasks.quantization.folder_sizes import PLAIN
from tasks.quantization.models import Calibration, Candidate, Score, Trial, TrialPlan
from tasks.quantization.plan import MARGIN_TOKENS

_Scored = tuple[list[Score], list[bool]]


@dataclass(frozen=True)
class FolderBench:
    """One engine in its environment, and the quantizer's Python if a format needs it.

    Implements `tasks.quantization.apply.CandidateBench`. Candidates are served as in `config`, but for batch and
    context. `scorer` is the script that scores a text if the engine's interface does not, on the GPUs if the
    engine uses them.
    """

    bench: EngineBench
    config: ServingConfig
    scorer: Path
    quantizer: Path | None = None
    calibration: Calibration | None = None

    def convert(self, worker: Path, model_dir: Path, form: CandidateFormat, out: Path) -> None:
        """As the quantization stage's `CandidateBench` says."""
        python = self.bench.python if form in PLAIN else self.quantizer
        assert python is not None  # the flow builds it for any format that needs it
        calibration = self.calibration if form is CandidateFormat.W4A16 else None
        make_folder(
            python, worker, model_dir, form, out, threads=self.config.threads, calibration=calibration
        )

    def compare_weights(self, worker: Path, baseline: Path, candidate: Path) -> dict[str, float | None]:
        """As the quantization stage's `CandidateBench` says."""
        return compare_folders(self.bench.python, worker, baseline, candidate)

    def try_candidate(self, candidate: Candidate, plan: TrialPlan) -> Trial:
        """As the quantization stage's `CandidateBench` says.

        What the engine's library scores it scores before the engine is started: each would take the processor, or the
        GPU's memory, from the other.
        """
        scored: _Scored = ([], [])
        by_library = self.bench.engine.card.scored_by == "library"
        if by_library and (plan.text is not None or plan.task_items):
            scorer = LibraryScorer(
                self.bench.python,
                self.scorer,
                self.config.threads,
                on_gpus=self.config.on_gpus,
                gpu_indices=self.config.gpu_indices,
                trust_remote_code=bool(self.config.remote_code),
            )
            scored = scorer.score(candidate.path, plan)
        config = self.config.model_copy(update={"batch": plan.slots, "context": plan.window + MARGIN_TOKENS})
        with self.bench.serve(candidate.path, config, candidate.log) as served:
            rows: tuple[tuple[float, ...], ...] = ()
            if config.task is not Task.GENERATE:
                with EngineApi(served.base_url, timeout_s=SCORING_S) as api:
                    rows = whole_answers(api, config, plan)
            elif not by_library:
                with EngineApi(served.base_url, timeout_s=SCORING_S) as api:
                    through = PromptScorer(api, config.served_name)
                    size = {"window": plan.window, "slots": plan.slots}
                    scores = through.score_text(plan.text, tokens=plan.tokens, **size) if plan.text else []
                    scored = scores, through.answer(plan.task_items, window=plan.window)
            speeds = self.bench.decoding_speeds(served, config, plan.window)
        scores, answers = scored
        return Trial(scores=tuple(scores), answers=tuple(answers), rows=rows, tokens_per_s=speeds)
