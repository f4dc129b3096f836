"""Choose a candidate by measured quality and speed, then the batch size to serve it at."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from blocks.candidates.open import open_candidate_bench
from blocks.engine.bench import EngineBench
from blocks.engine.guidellm import Guidellm
from blocks.engine.tool_environment import build_tool, is_built, lock_tool, tool_python
from blocks.host.host import fingerprint_here, memory_bytes
from blocks.host.host_load import ForeignLoad
from blocks.host.nvml import gpus_in_use
from blocks.host.prefetch import Prefetcher
from blocks.prefect.artifacts import flow_recorder
from blocks.prefect.asked_by_api import check_programs, python_in
from blocks.prefect.flows import flow, show_state, step
from blocks.prefect.progress import show_steps
from blocks.services.chat import chat_of
from blocks.storage.model_source import open_folder
from blocks.storage.record_store import open_record_store
from tasks.batching import guidellm
from tasks.batching import report as batching_report
from tasks.batching.apply import find_batch
from tasks.batching.models import BatchingRequest, BatchingResult
from tasks.batching.priors import find_prior
from tasks.core.allowed import programs_of_code, programs_of_serving
from tasks.core.chat_tokens import difference
from tasks.core.files import file_lock
from tasks.core.frozen import Frozen
from tasks.core.model_shape import read_model_config
from tasks.core.model_task import Task, purpose_of_folder, settle
from tasks.core.progress import say
from tasks.core.serving import ServingConfig
from tasks.core.settings import Settings
from tasks.core.sources import FILE, local_folder
from tasks.core.stage import Outcome, run_stage
from tasks.core.verdicts import StageName
from tasks.engines.arguments import programs_of_arguments
from tasks.engines.catalogue import get_engine
from tasks.engines.families import check_family
from tasks.engines.parsers import OFFERED
from tasks.engines.weights import check_tunable
from tasks.environment.models import Locked
from tasks.quantization import report as quantization_report
from tasks.quantization.apply import measure_candidates, predict_sizes, still_good
from tasks.quantization.models import Candidate, QuantizationResult
from tasks.quantization.plan import check_lines, check_order
from tasks.quantization.recipe import QUANTIZER
from tasks.quantization.source import (
    gguf_in,
    read_baseline,
    read_gguf_in,
    read_gguf_source,
    read_quantized_source,
    read_source,
    template_of,
    weights_in,
)
from tasks.staging.remote_code import code_in, digests_of
from tasks.staging.source import pin
from tasks.staging.store import in_use_by_path
from tasks.tuning import plan
from tasks.tuning.models import TuningFacts, TuningRequest
from tasks.tuning.texts import read_calibration, read_task_set, read_text

R = TypeVar("R")


class TuningOutcome(Frozen):
    """The outcomes of both stages; `batching` is None if no candidate was chosen."""

    quantization: Outcome[QuantizationResult]
    batching: Outcome[BatchingResult] | None


@flow(name="tune-serving", flow_run_name="tune {request.name}")
def tune_serving(request: TuningRequest) -> TuningOutcome:
    """Make quantized candidates, measure them, and find the batch size.

    Args:
        request: The staged model, the engine's environment, and the spec's sections on tuning.
    """
    python = python_in(request.python_path, "request.python_path")
    own = programs_of_arguments(request.engine, request.engine_args, request.engine_env, "request.")
    code = programs_of_code(request.serving, f"{FILE}{request.model_dir}", "request.serving")
    check_programs([python, *own, *programs_of_serving(request.serving, "request.serving"), *code])
    check_tunable(request.engine)
    with in_use_by_path(request.model_dir, Settings.load()):
        facts = read_facts(request)
        quantization = quantized(request, facts)
        chosen = quantization.result.chosen
        batching = _batch(request, facts, chosen.candidate) if chosen and chosen.candidate else None
    last = batching or quantization
    cached = quantization.cached and batching is not None and batching.cached
    outcome = TuningOutcome(quantization=quantization, batching=batching)
    name = "Cached" if cached else last.verdict.capitalize()
    show_state(name, last.headline, says_no=last.says_no)
    return outcome


def read_facts(request: TuningRequest) -> TuningFacts:
    """Facts about the staged model and this host, read once. Raises `ModelError`."""
    folder = request.model_dir
    gguf = read_gguf_in(folder, names) if (names := gguf_in(folder)) else None
    config: Mapping[str, Any] = {}
    if gguf:
        source, family = read_gguf_source(folder, names), None
        found = source.purpose
    else:
        config = read_model_config(folder)
        weights, family = weights_in(folder, config), check_family(config)
        to_gguf = get_engine(request.engine).card.loads_gguf
        source = (
            read_quantized_source(folder, config, weights)
            if weights
            else read_source(folder, config, to_gguf=to_gguf)
        )
        found = purpose_of_folder(folder, local_folder(request.source or ""), config)
    purpose = settle(request.task, request.serving.pooling, found, request.source or str(folder))
    generates, baseline = purpose.task is Task.GENERATE, None
    if request.baseline_dir is not None:
        baseline, shape = read_baseline(request.baseline_dir, request.baseline_digest)
        plan.check_same_model(source.shape, shape)
    code = _code_in(request, folder)
    if baseline is not None:
        plan.check_same_code(code, _code_in(request, baseline.model_dir))
        told = difference(template_of(folder), template_of(baseline.model_dir))
        if told and generates:
            say(StageName.QUANTIZATION, f"warning: {told}")
    return TuningFacts(
        source=source,
        family=family,
        gpus=gpus_in_use(request.hardware.gpus),
        host_bytes=memory_bytes(),
        cpus=len(os.sched_getaffinity(0)),
        chat=chat_of(folder, gguf, request.serving.chat_template, config) if generates else None,
        purpose=purpose,
        baseline=baseline,
        remote_code=code,
    )


def _code_in(request: TuningRequest, folder: Path) -> Mapping[str, str]:
    """The code of the staged model in `folder` that the engine may run, with its digests."""
    if not request.serving.trust_remote_code or get_engine(request.engine).card.loads_gguf:
        return {}
    pinned = pin(open_folder(f"{FILE}{folder}"))
    return digests_of(pinned, code_in(pinned), trusted=True)


def quantized(request: TuningRequest, facts: TuningFacts) -> Outcome[QuantizationResult]:
    """The quantization stage alone. Raises `SpecError` for a wish that cannot be measured."""
    capabilities = [one.gpu.compute_capability for one in facts.gpus]
    plan.check_request(request, facts.source, facts.purpose, capabilities)
    config, refused = plan.serving_config(request, facts), plan.refused_formats(request, facts)
    tuning, text = request.tuning, request.tuning.quality_text
    asked = plan.quantization_request(
        request,
        facts,
        refused,
        text=read_text(text, "tuning.quality_text", tuning.quality_tokens) if text else None,
        task_items=read_task_set(tuning),
        calibration=read_calibration(tuning),
    )
    if asked.baseline is None:
        check_order(asked.formats, predict_sizes(asked, facts.source))
    check_lines(asked)
    quantizer: Locked | None = None
    if plan.needs_quantizer(request, refused):
        quantizer = lock_tool(QUANTIZER, Settings.load(), name="the quantizer", torch_backend="auto")
        asked = asked.model_copy(update={"quantizer_digest": quantizer.digest})
    load = ForeignLoad()

    def work() -> QuantizationResult:
        python = _quantizer_python(quantizer) if quantizer else None
        bench = open_candidate_bench(_bench(request, StageName.QUANTIZATION), config, asked, python)
        with show_steps(StageName.QUANTIZATION, request.name):
            measure = step("measure-candidates", measure_candidates)
            return _alone(lambda: measure(asked, facts.source, bench, Settings.load()), load)

    return run_stage(
        flow_recorder(),
        StageName.QUANTIZATION,
        subject=request.name,
        inputs=plan.quantization_inputs(request, config, asked),
        result_type=QuantizationResult,
        report=quantization_report,
        work=work,
        still_good=still_good,
        load=load,
    )


def _batch(request: TuningRequest, facts: TuningFacts, candidate: Candidate) -> Outcome[BatchingResult]:
    asked = plan.batching_request(request, facts, candidate)
    inputs = plan.batching_inputs(request, candidate, asked)
    records = open_record_store(Settings.load()).list(StageName.BATCHING)
    prior = find_prior(records, inputs, fingerprint_here())
    load = ForeignLoad()

    def work() -> BatchingResult:
        bench = _with_generator(_bench(request, StageName.BATCHING), request, asked)
        with show_steps(StageName.BATCHING, request.name):
            search = step("find-batch", find_batch)
            return _alone(lambda: search(asked, bench, prior.batch if prior else None), load)

    outcome = run_stage(
        flow_recorder(),
        StageName.BATCHING,
        subject=request.name,
        inputs=inputs,
        result_type=BatchingResult,
        report=batching_report,
        work=work,
        still_good=lambda _: True,  # nothing is kept but the record itself
        consulted=(prior.record,) if prior else (),
        load=load,
    )
    return outcome.model_copy(update={"result": _served_by(outcome.result, asked.config)})


def _bench(request: TuningRequest, stage: StageName) -> EngineBench:
    return EngineBench(
        engine=get_engine(request.engine),
        python=request.python_path,
        start_timeout_s=request.start_timeout_s,
        prefetch=Prefetcher(stage),
    )


def _quantizer_python(locked: Locked) -> Path:
    """The quantizer's environment. Its pins conflict with the engines', so it never shares theirs."""
    if not is_built(locked, Settings.load()):
        say(StageName.QUANTIZATION, "building the quantizer's environment")
    return build_tool(locked, Settings.load())


def _with_generator(bench: EngineBench, request: TuningRequest, asked: BatchingRequest) -> EngineBench:
    """The bench with the load generator that the spec asks for; its environment is built the first time."""
    if not plan.by_guidellm(request.tuning):
        return bench
    say(StageName.BATCHING, "building guidellm's environment, if it is not there yet")
    python = tool_python(
        guidellm.REQUIREMENTS, Settings.load(), name="guidellm", torch_backend="cpu", install=True
    )
    assert python is not None  # it is installed
    chat = asked.config.chat is not None
    return replace(
        bench,
        load_by=lambda url, model: Guidellm(python, guidellm.Target(url, model, request.model_dir, chat)),
    )


def _alone(work: Callable[[], R], load: ForeignLoad) -> R:
    """Measure while no other run on this host does: each would take the other's load for its engine's limit."""
    with file_lock(Settings.load().leases / "measuring", wait=True, holder="this host's measurements"):
        return load.over(work)


def _served_by(result: BatchingResult, config: ServingConfig) -> BatchingResult:
    """A record of another service of the same model, or on another of a kind of hosts, stands in for the work, but
    neither for what the service offers nor for which GPUs of the host it were."""
    fields = ("served_name", "gpu_indices", "chat", *OFFERED)
    own = {name: getattr(config, name) for name in fields}
    return result.model_copy(update={"config": result.config.model_copy(update=own)})
