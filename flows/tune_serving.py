"""Choose a candidate by measured quality and speed, then the batch size to serve it at."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from blocks.engine.bench import EngineBench
from blocks.engine.guidellm import Guidellm
from blocks.engine.tool_environment import tool_python
from blocks.host.host import fingerprint_here
from blocks.host.host_load import ForeignLoad
from blocks.host.nvml import gpus_in_use
from blocks.host.prefetch import Prefetcher
from blocks.prefect.asked_by_api import hold_to_list, python_in
from blocks.prefect.flows import flow, show_state, step
from blocks.prefect.recorder import flow_recorder
from blocks.prefect.step_progress import show_steps
from blocks.storage.record_store import open_record_store
from flows.candidate_bench import (
    candidate_bench,
    infeasible,
    quantizer_lock,
)
from flows.placing import (
    ALL_LAYERS,
    find_space,
    footprint_of,
    gpu_sizes,
    host_bytes,
    predicted,
)
from tasks.batching import guidellm
from tasks.batching import report as batching_report
from tasks.batching.apply import find_batch
from tasks.batching.models import BatchingRequest, BatchingResult, Limits, Requests, Space
from tasks.batching.priors import find_prior
from tasks.core.digests import digest_of
from tasks.core.errors import SpecError
from tasks.core.files import file_lock
from tasks.core.load import longest_output, prompt_for
from tasks.core.model_shape import ModelShape, check_convertible, read_model_shape
from tasks.core.progress import say
from tasks.core.serving import ServingConfig
from tasks.core.settings import Settings
from tasks.core.spec import CandidateFormat, EngineKind, Gate, Hardware, LoadGenerator, Objectives, Tuning
from tasks.core.stage import Outcome, run_stage
from tasks.core.verdicts import StageName
from tasks.engines.catalogue import get_engine
from tasks.engines.families import family_in
from tasks.engines.weights import check_formats, check_tunable
from tasks.quantization import report as quantization_report
from tasks.quantization.apply import measure_candidates, predict_sizes, still_good
from tasks.quantization.models import Candidate, QuantizationRequest, QuantizationResult
from tasks.quantization.plan import check_order
from tasks.quantization.recipe import maker_digest
from tasks.staging.store import in_use_by_path
from tasks.tuning.texts import read_calibration, read_task_set, read_text

R = TypeVar("R")


class TuningRequest(BaseModel):
    """A staged model and an engine's environment, and what the user asks of both."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Name of the service.")
    engine: EngineKind = Field(description="Serving engine.")
    python_path: Path = Field(description="Python of the engine's environment.")
    environment_digest: str = Field(description="Digest of that environment's lock.")
    model_dir: Path = Field(description="Folder of the staged model.")
    model_digest: str = Field(description="Digest of its manifest.")
    tuning: Tuning = Tuning()
    objectives: Objectives = Objectives()
    hardware: Hardware = Hardware()
    start_timeout_s: float = Field(
        Gate().start_timeout_s, gt=0, description="Longest start of the engine, s."
    )


class TuningOutcome(BaseModel):
    """Both stages' outcomes; no batching where no candidate was chosen."""

    model_config = ConfigDict(frozen=True)

    quantization: Outcome[QuantizationResult]
    batching: Outcome[BatchingResult] | None


@flow(name="tune-serving", flow_run_name="tune {request.name}")
def tune_serving(request: TuningRequest) -> TuningOutcome:
    """Make quantized candidates, measure them, and find the batch size.

    Args:
        request: The staged model, the engine's environment, and the spec's sections on tuning.
    """
    hold_to_list([python_in(request.python_path, "request.python_path")])
    check_tunable(request.engine)
    with in_use_by_path(request.model_dir, Settings.load()):
        quantization = quantized(request)
        chosen = quantization.result.chosen
        batching = _batch(request, chosen.candidate) if chosen and chosen.candidate else None
    last = batching or quantization
    cached = quantization.cached and batching is not None and batching.cached
    outcome = TuningOutcome(quantization=quantization, batching=batching)
    name = "Cached" if cached else last.verdict.capitalize()
    show_state(name, last.headline, says_no=last.says_no)
    return outcome


def _bench(request: TuningRequest, stage: StageName) -> EngineBench:
    return EngineBench(
        engine=get_engine(request.engine),
        python=request.python_path,
        start_timeout_s=request.start_timeout_s,
        prefetch=Prefetcher(stage),
    )


def _config(request: TuningRequest) -> ServingConfig:
    """How the engine serves while it is tuned, but for the batch size and for its placement on GPUs."""
    gpus = request.hardware.gpus
    by_layer = get_engine(request.engine).card.loads_gguf
    return ServingConfig(
        served_name=request.name,
        batch=1,
        context=request.tuning.context,
        threads=request.hardware.cpus or len(os.sched_getaffinity(0)),
        gpu_layers=ALL_LAYERS if gpus and by_layer else 0,
        gpus=0 if by_layer else gpus,
        gpu_indices=tuple(one.number for one in gpus_in_use(gpus)),
        memory_fraction=request.objectives.memory_fraction,
        kv_bytes_per_token=read_model_shape(request.model_dir).kv_bytes_per_token,
    )


def _check(request: TuningRequest, shape: ModelShape) -> None:
    """What can be known to be wrong before anything is measured."""
    tuning = request.tuning
    check_formats(request.engine, tuning.candidates)
    if get_engine(request.engine).card.loads_gguf:
        check_convertible(shape, f"{request.model_dir}/config.json")
    if _by_guidellm(tuning) and get_engine(request.engine).card.prompts == "text":
        raise SpecError(
            f"guidellm cannot load {request.engine}: that server refuses ignore_eos, which guidellm sends",
            fix="set tuning.load_generator to builtin",
        )
    if tuning.context > shape.max_context:
        raise SpecError(
            f"tuning.context is {tuning.context}, the model was made for {shape.max_context} tokens",
            fix=f"set tuning.context to {shape.max_context} or less",
        )
    if longest_output(tuning.output_tokens) >= tuning.context:
        raise SpecError(
            f"tuning.output_tokens {tuning.output_tokens} leave no room for a prompt in {tuning.context} tokens",
            fix="lower tuning.output_tokens or raise tuning.context",
        )
    prompt, longest = tuning.load.prompt_tokens or 0, longest_output(tuning.output_tokens)
    if prompt + longest > tuning.context:
        raise SpecError(
            f"tuning.load.prompt_tokens {prompt} and outputs of up to {longest} tokens do not fit into "
            f"tuning.context {tuning.context}",
            fix=f"set tuning.context to {prompt + longest} or more, or ask for less",
        )


def quantized(request: TuningRequest) -> Outcome[QuantizationResult]:
    """The quantization stage alone. Raises `SpecError` for a wish that cannot be measured."""
    _check(request, read_model_shape(request.model_dir))
    config = _config(request)
    if (space := _space(request, request.tuning.candidates[0])) and space.knob == "tensor_parallel":
        config = predicted(config, space)
    family = family_in(request.model_dir)
    refused = infeasible(request.engine, request.tuning, request.hardware, family)
    asked = _asked(request, refused)
    check_order(asked.formats, predict_sizes(asked))
    if quantizer := quantizer_lock(request.engine, request.tuning, refused):
        asked = asked.model_copy(update={"quantizer_digest": quantizer.digest})
    inputs = {
        **_common_inputs(request, config),
        **asked.model_dump(mode="json", exclude={"model_dir", "text", "exercises", "calibration"}),
        "text_digest": digest_of(asked.text),
        "task_set_digest": digest_of([one.model_dump() for one in asked.exercises]),
        "maker_digests": [maker_digest(asked, form) for form in asked.formats],
    }

    load = ForeignLoad()

    def work() -> QuantizationResult:
        made_by = candidate_bench(
            _bench(request, StageName.QUANTIZATION), config, asked, quantizer, partial(_placed, request)
        )
        with show_steps(StageName.QUANTIZATION, request.name):
            measure = step("measure-candidates", measure_candidates)
            return _alone(lambda: measure(asked, made_by, Settings.load()), load)

    return run_stage(
        flow_recorder(),
        StageName.QUANTIZATION,
        subject=request.name,
        inputs=inputs,
        result_type=QuantizationResult,
        report=quantization_report,
        work=work,
        still_good=still_good,
        load=load,
    )


def _asked(request: TuningRequest, refused: dict[CandidateFormat, str]) -> QuantizationRequest:
    tuning, objectives = request.tuning, request.objectives
    card = get_engine(request.engine).card
    assert card.scored_by is not None  # checked with the formats
    text = tuning.quality_text
    return QuantizationRequest(
        model_dir=request.model_dir,
        model_digest=request.model_digest,
        formats=tuning.candidates,
        text=read_text(text, "tuning.quality_text", tuning.quality_tokens) if text else None,
        tokens=tuning.quality_tokens,
        context=tuning.context,
        tolerance=objectives.quality_tolerance,
        exercises=read_task_set(tuning),
        task_tolerance=_task_tolerance(objectives),
        policy=objectives.policy,
        memory_bytes=_servable_bytes(request),
        layout=card.layouts[0],
        unpacks=card.unpacks_weights,
        infeasible=refused,
        calibration=read_calibration(tuning),
        scored_by=card.scored_by,
    )


def _batch(request: TuningRequest, candidate: Candidate) -> Outcome[BatchingResult]:
    tuning = request.tuning
    limits = _limits(request)
    config = _config(request)
    space = _space(request, candidate.format)
    bench = _bench(request, StageName.BATCHING)
    inputs = {
        **_common_inputs(request, config),
        "candidate_digest": candidate.digest,
        "format": candidate.format.value,
        "context": config.context,
        "output_tokens": tuning.output_tokens,
        "load": tuning.load.model_dump(mode="json"),
        "load_generator": list(guidellm.REQUIREMENTS) if _by_guidellm(tuning) else "builtin",
        "limits": limits.model_dump(mode="json"),
        **({"space": space.model_dump(mode="json")} if space else {}),
    }
    records = open_record_store(Settings.load()).list(StageName.BATCHING)
    prior = find_prior(records, inputs, fingerprint_here())
    asked = BatchingRequest(
        model_file=candidate.path,
        config=config,
        output_tokens=tuning.output_tokens,
        limits=limits,
        load=tuning.load,
        space=space,
    )
    load = ForeignLoad()

    def work() -> BatchingResult:
        generator = _with_generator(bench, request)
        with show_steps(StageName.BATCHING, request.name):
            search = step("find-batch", find_batch)
            return _alone(lambda: search(asked, generator, prior.batch if prior else None), load)

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
    return outcome.model_copy(update={"result": _served_by(outcome.result, config)})


def _by_guidellm(tuning: Tuning) -> bool:
    return tuning.load_generator is LoadGenerator.GUIDELLM


def _with_generator(bench: EngineBench, request: TuningRequest) -> EngineBench:
    """The bench with the load generator that the spec asks for; its environment is built the first time."""
    if not _by_guidellm(request.tuning):
        return bench
    say(StageName.BATCHING, "building guidellm's environment, if it is not there yet")
    python = tool_python(
        guidellm.REQUIREMENTS, Settings.load(), name="guidellm", torch_backend="cpu", install=True
    )
    assert python is not None  # it is installed
    return replace(
        bench,
        load_by=lambda url, model: Guidellm(python, guidellm.Target(url, model, request.model_dir)),
    )


def _alone(work: Callable[[], R], load: ForeignLoad) -> R:
    """Measure while no other run on this host does: each would take the other's load for its engine's limit."""
    with file_lock(Settings.load().leases / "measuring", wait=True, holder="this host's measurements"):
        return load.over(work)


def _served_by(result: BatchingResult, config: ServingConfig) -> BatchingResult:
    """A record of another service of the same model, or on another of a kind of hosts, stands in for the work, but
    neither for the name nor for which GPUs of the host it were."""
    own = config.model_dump(include={"served_name", "gpu_indices"})
    return result.model_copy(update={"config": result.config.model_copy(update=own)})


def _common_inputs(request: TuningRequest, config: ServingConfig) -> dict[str, Any]:
    return {
        "engine": request.engine.value,
        "environment_digest": request.environment_digest,
        "model_digest": request.model_digest,
        **config.model_dump(mode="json", include={"threads", "gpu_layers", "gpus", "memory_fraction"}),
    }


def _limits(request: TuningRequest) -> Limits:
    wanted = {"ttft_p95": request.objectives.ttft_ms, "tpot_p95": request.objectives.tpot_ms}
    return Limits(
        memory_bytes=_usable_bytes(request),
        latency_ms={name: bound for name, bound in wanted.items() if bound is not None},
        tolerance=request.tuning.tolerance,
        max_batch=min(request.tuning.max_batch, get_engine(request.engine).card.max_batch),
        rate_per_s=request.tuning.load.rate,
    )


def _space(request: TuningRequest, form: CandidateFormat) -> Space | None:
    """The settings that are searched beside the batch size; None where there are none."""
    tuning, card = request.tuning, get_engine(request.engine).card
    footprint = footprint_of(request.model_dir, form, card, tuning.context)
    prompt = tuning.load.prompt_tokens or prompt_for(tuning.context, tuning.output_tokens)
    return find_space(
        card,
        request.hardware,
        footprint,
        _limits(request),
        request.objectives.memory_fraction,
        Requests(prompt_tokens=prompt, output_tokens=tuning.output_tokens),
    )


def _placed(request: TuningRequest, form: CandidateFormat, config: ServingConfig) -> ServingConfig:
    """How a candidate is served while its quality and speed are measured: placed as it is predicted to fit."""
    space = _space(request, form)
    return predicted(config, space) if space else config


def _usable_bytes(request: TuningRequest) -> int:
    """The limit that measured memory is held against: the GPUs' where they are used, else the host's, which is what
    GPUs have as well that have none of their own."""
    hardware = request.hardware  # an engine that does not use the GPUs is refused by the bench
    return int((sum(gpu_sizes(hardware)) or host_bytes(hardware)) * request.objectives.memory_fraction)


def _servable_bytes(request: TuningRequest) -> int:
    """What a model may take to be served at all: of an engine that offloads layers, the host's memory as well."""
    usable = _usable_bytes(request)
    if gpu_sizes(request.hardware) and get_engine(request.engine).card.find_knob("offload"):
        usable += int(host_bytes(request.hardware) * request.objectives.memory_fraction)
    return usable


def _task_tolerance(objectives: Objectives) -> float:
    wanted = objectives.task_tolerance
    return objectives.quality_tolerance if wanted is None else wanted
