"""Opens the workbench for the layout that an engine loads its candidates in."""

from __future__ import annotations

from pathlib import Path

from blocks.candidates.folder_bench import FolderBench
from blocks.candidates.gguf_bench import GgufBench
from blocks.engine.bench import EngineBench
from tasks.core.model_task import Task
from tasks.core.serving import ServingConfig
from tasks.quantization.apply import CandidateBench
from tasks.quantization.models import QuantizationRequest
from tasks.quantization.recipe import SCORER, pooling_of


def open_candidate_bench(
    bench: EngineBench, config: ServingConfig, request: QuantizationRequest, quantizer: Path | None
) -> CandidateBench:
    """The bench that makes and measures the request's candidates; `quantizer` is its Python, if one is needed."""
    if request.layout == "gguf-file":
        made_for = () if request.task is Task.GENERATE else ("--pooling", pooling_of(request))
        return GgufBench(bench, config, options=made_for)
    return FolderBench(bench, config, scorer=SCORER, quantizer=quantizer, calibration=request.calibration)
