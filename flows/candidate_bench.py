"""Where candidates of an engine are made and measured: which bench, for which of the formats asked for."""

from __future__ import annotations

from pathlib import Path

from blocks.candidates.folder_bench import FolderBench
from blocks.candidates.gguf_bench import GgufBench, Place
from blocks.engine.bench import EngineBench
from blocks.engine.tool_environment import build_tool, is_built, lock_tool
from blocks.host.nvml import gpus_in_use
from tasks.core.progress import say
from tasks.core.serving import ServingConfig
from tasks.core.settings import Settings
from tasks.core.spec import CandidateFormat, EngineKind, Hardware, Tuning
from tasks.core.verdicts import StageName
from tasks.engines.catalogue import get_engine
from tasks.engines.families import Family
from tasks.engines.weights import why_not_here
from tasks.environment.models import Locked
from tasks.quantization.apply import CandidateBench
from tasks.quantization.folder_sizes import PLAIN
from tasks.quantization.models import QuantizationRequest
from tasks.quantization.recipe import QUANTIZER, SCORER


def infeasible(
    kind: EngineKind, tuning: Tuning, hardware: Hardware, family: Family | None = None
) -> dict[CandidateFormat, str]:
    """The formats that the engine cannot compute in on the GPUs in use, or on the processor, or that the family
    overflows in, each with the reason."""
    capabilities = [one.gpu.compute_capability for one in gpus_in_use(hardware.gpus)]
    reasons = {form: why_not_here(kind, form, capabilities, family) for form in tuning.candidates}
    return {form: reason for form, reason in reasons.items() if reason}


def quantizer_lock(kind: EngineKind, tuning: Tuning, refused: dict[CandidateFormat, str]) -> Locked | None:
    """The lock of the quantizer's environment, if a format that can be measured needs it."""
    if get_engine(kind).card.loads_gguf:
        return None
    needed = [form for form in tuning.candidates if form not in PLAIN and form not in refused]
    if not needed:
        return None
    return lock_tool(QUANTIZER, Settings.load(), name="the quantizer", torch_backend="auto")


def candidate_bench(
    bench: EngineBench,
    config: ServingConfig,
    request: QuantizationRequest,
    quantizer: Locked | None,
    place: Place,
) -> CandidateBench:
    """The bench for the layout that the engine loads. Builds the quantizer's environment where it is needed."""
    if request.layout == "gguf-file":
        return GgufBench(bench, config, place=place)
    return FolderBench(
        bench,
        config,
        scorer=SCORER,
        quantizer=_quantizer_python(quantizer) if quantizer else None,
        calibration=request.calibration,
    )


def _quantizer_python(locked: Locked) -> Path:
    """Its pins conflict with the engines', so it never shares their environment."""
    if not is_built(locked, Settings.load()):
        say(StageName.QUANTIZATION, "building the quantizer's environment")
    return build_tool(locked, Settings.load())
