"""What makes candidates in each layout, and what names what it makes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tasks.core.digests import digest_of, digest_of_file
from tasks.core.model_task import Task
from tasks.core.spec_kinds import CandidateFormat
from tasks.engines.card import Layout
from tasks.quantization.folder_sizes import PLAIN
from tasks.quantization.models import QuantizationRequest

_WORKERS = Path(__file__).parent / "worker"


@dataclass(frozen=True)
class Recipe:
    """The scripts that make and compare candidates, and what a candidate is called in its folder."""

    worker: Path
    comparer: Path
    name: str


RECIPES: dict[Layout, Recipe] = {
    "gguf-file": Recipe(_WORKERS / "make_gguf.py", _WORKERS / "compare_gguf.py", "model.gguf"),
    "hf-folder": Recipe(_WORKERS / "compress.py", _WORKERS / "compare_folders.py", "model"),
}

_BERT_MAKER = _WORKERS / "make_bert_gguf.py"
"""Makes GGUF files of encoders: BERT is the one that is known."""

QUANTIZER = ("llmcompressor==0.14.0.1", "torch==2.13.0")
"""Requirements of the quantizer's environment. It resolves compressed-tensors 0.19 and Transformers 5.17; the engines
want others of both."""

SCORER = _WORKERS / "score_text.py"


def recipe_of(request: QuantizationRequest) -> Recipe:
    """The recipe for the layout that the engine loads. A model in several files stays in several: a folder."""
    recipe = RECIPES[request.layout]
    if request.layout == "gguf-file" and request.task is not Task.GENERATE:
        recipe = replace(recipe, worker=_BERT_MAKER)
    return replace(recipe, name="model") if len(request.as_is) > 1 else recipe


def pooling_of(request: QuantizationRequest) -> str:
    """What the file of an encoder says it is for, in the maker's words."""
    return "rank" if request.task is Task.RERANK else str(request.pooling)


def maker_digest(request: QuantizationRequest, form: CandidateFormat) -> str:
    """Names the converter, and what else decides the bytes: another one may make another file of the same model."""
    if form is CandidateFormat.AS_IS:
        return digest_of("as it comes")
    worker = digest_of_file(recipe_of(request).worker)
    if request.layout == "gguf-file":
        if request.task is Task.GENERATE:
            return worker
        # It shares code with the other maker, and writes down what the model is for.
        shared = digest_of_file(RECIPES[request.layout].worker)
        return digest_of([worker, shared, pooling_of(request)])
    quantizer = None if form in PLAIN else request.quantizer_digest
    fitted = request.calibration.digest if request.calibration and form is CandidateFormat.W4A16 else None
    return digest_of([worker, quantizer, fitted])
