"""A workbench for candidates that are GGUF files: made by a table of tensors, scored and served by llama.cpp."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from blocks.candidates.candidate_worker import compare_gguf, make_gguf
from blocks.candidates.llama_cpp_scores import score_windows
from blocks.candidates.task_answers import answer_items
from blocks.candidates.whole_answers import whole_answers
from blocks.engine.api import EngineApi
from blocks.engine.bench import SCORING_S, EngineBench
from blocks.engine.tokens import Token, llama_cpp_tokens
from tasks.core.serving import ServingConfig
from tasks.core.spec_kinds import CandidateFormat
from tasks.quantization.models import Candidate, Score, Trial, TrialPlan
from tasks.quantization.plan import MARGIN_TOKENS


@dataclass(frozen=True)
class GgufBench:
    """Implements `tasks.quantization.apply.CandidateBench`. Candidates are served as in `config`, but for batch and
    context, and made with `options`."""

    bench: EngineBench
    config: ServingConfig
    scoring_s: float = SCORING_S
    options: tuple[str, ...] = ()

    def convert(self, worker: Path, model_dir: Path, form: CandidateFormat, out: Path) -> None:
        """As the quantization stage's `CandidateBench` says."""
        make_gguf(self.bench.python, worker, model_dir, form, out, self.options)

    def compare_weights(self, worker: Path, baseline: Path, candidate: Path) -> dict[str, float | None]:
        """As the quantization stage's `CandidateBench` says."""
        return compare_gguf(self.bench.python, worker, baseline, candidate)

    def try_candidate(self, candidate: Candidate, plan: TrialPlan) -> Trial:
        """As the quantization stage's `CandidateBench` says."""
        window, slots = plan.window, plan.slots
        config = self.config.model_copy(update={"batch": slots, "context": window + MARGIN_TOKENS})
        with self.bench.serve(candidate.path, config, candidate.log) as served:
            with EngineApi(served.base_url, timeout_s=self.scoring_s) as api:
                rows = whole_answers(api, config, plan)
                scores = _score(api, plan.text, plan) if plan.text is not None else []
                items = plan.task_items
                answers = answer_items(api, items, window=window, slots=slots) if items else []
            speeds = self.bench.decoding_speeds(served, config, window)
        return Trial(scores=tuple(scores), answers=tuple(answers), rows=rows, tokens_per_s=speeds)


def _score(api: EngineApi, text: str, plan: TrialPlan) -> list[Score]:
    found, window = llama_cpp_tokens(api, text)[: plan.tokens], plan.window
    windows: list[list[Token]] = [found[start : start + window] for start in range(0, len(found), window)]
    return score_windows(api, windows, slots=plan.slots)
