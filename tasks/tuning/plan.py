"""What tuning measures, and within which bounds. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.batching.guidellm import REQUIREMENTS
from tasks.batching.models import BatchingRequest, Limits, Requests, StepSpace, StepTokens
from tasks.core.digests import digest_of
from tasks.core.errors import SpecError
from tasks.core.load import longest_output, prompt_for
from tasks.core.model_shape import ModelShape, check_convertible
from tasks.core.model_task import GENERATES, Purpose, Task
from tasks.core.serving import FITTED, ServingConfig
from tasks.core.spec_kinds import CandidateFormat, EngineKind, LoadGenerator
from tasks.core.spec_sections import Tuning
from tasks.engines.arguments import check_arguments
from tasks.engines.as_is import check_as_is
from tasks.engines.card import Capability, EngineCard
from tasks.engines.catalogue import get_engine
from tasks.engines.parsers import check_parsers, offered
from tasks.engines.weights import check_formats, check_gguf, check_not_as_is, why_not_here
from tasks.quantization.folder_sizes import PLAIN
from tasks.quantization.models import Calibration, Candidate, QuantizationRequest, TaskItem
from tasks.quantization.recipe import maker_digest
from tasks.quantization.sizes import Source
from tasks.tuning.for_task import check_task
from tasks.tuning.models import TuningFacts, TuningRequest

_MEMORY_STEP = 1 << 28
"""The host's memory is taken in steps: the kernel's own share changes a little with every start."""

_AROUND = 4
"""Tokens that a model for embeddings or rankings puts around texts, at most."""

_HELD_BEYOND = 0.01
"""An engine uses a little more memory than its setting, so the setting is a little below the limit."""


def check_request(
    request: TuningRequest,
    source: Source,
    purpose: Purpose = GENERATES,
    capabilities: Sequence[Capability | None] = (),
) -> None:
    """What can be known to be wrong before anything is measured of a model for that purpose, on GPUs of these
    capabilities if any. Raises `SpecError` or `ModelError`."""
    tuning, shape = request.tuning, source.shape
    check_formats(request.engine, tuning.candidates)
    check_arguments(request.engine, request.engine_args)
    check_parsers(request.engine, request.serving, request.engine_args)
    if source.weights is not None:
        check_as_is(
            request.engine,
            source.weights,
            tuning.candidates,
            "the model",
            capabilities=capabilities,
            requirements=None,
        )
    elif source.stored_as is not None:
        check_gguf(request.engine, tuning.candidates, source.stored_as, "the model")
        check_tunable_gguf(tuning, shape.max_context)
    else:
        check_not_as_is(tuning.candidates, "the model")
        if _card(request).loads_gguf:
            check_convertible(shape, f"{request.model_dir}/config.json", purpose.task)
    check_task(request, purpose)
    check_takes_baseline(tuning, as_is=bool(source.as_is))
    check_load(request.engine, tuning, shape.max_context, purpose.task)


def check_load(kind: EngineKind, tuning: Tuning, max_context: int | None, task: Task = Task.GENERATE) -> None:
    """Raise `SpecError` for requests that the engine cannot be sent, or that do not fit into the context, which is at
    most so many tokens."""
    if by_guidellm(tuning) and get_engine(kind).card.prompts == "text":
        raise SpecError(
            f"guidellm cannot put load on {kind}: its server rejects ignore_eos, which guidellm sends",
            fix="set tuning.load_generator to builtin",
        )
    _check_context(tuning, max_context)
    generates = task is Task.GENERATE
    longest = longest_output(tuning.output_tokens) if generates else _AROUND
    if generates and longest >= tuning.context:
        raise SpecError(
            f"tuning.output_tokens of {tuning.output_tokens} leaves no room for a prompt in {tuning.context} tokens",
            fix="lower tuning.output_tokens or raise tuning.context",
        )
    prompt = tuning.load.prompt_tokens or 0
    if prompt + longest > tuning.context:
        raise SpecError(
            f"tuning.load.prompt_tokens {prompt} and "
            + (f"outputs of up to {longest} tokens" if generates else f"the {longest} tokens around a text")
            + f" do not fit into tuning.context {tuning.context}",
            fix=f"set tuning.context to {prompt + longest} or more, or ask for fewer tokens",
        )


def check_tunable_gguf(tuning: Tuning, max_context: int | None) -> None:
    """What a model that comes as GGUF, for a context of so many tokens, cannot be asked for. Raises `SpecError`."""
    _check_context(tuning, max_context)
    if by_guidellm(tuning):
        raise SpecError(
            "guidellm needs the model's tokenizer.json, which a GGUF model does not have",
            fix="set tuning.load_generator to builtin",
        )


def check_takes_baseline(tuning: Tuning, *, as_is: bool) -> None:
    """Raise `SpecError` for a baseline beside a model of which candidates are made: the first of them is it."""
    if tuning.baseline is not None and not as_is:
        raise SpecError(
            "tuning.baseline is for a model that is served as it comes; of this one candidates are made, and the "
            "first of them is the baseline",
            fix="leave tuning.baseline out",
        )


def check_same_model(model: ModelShape, baseline: ModelShape) -> None:
    """Raise `SpecError` for a baseline of other sizes than the model's, as far as they are known."""
    for name in ("layers", "hidden", "heads", "vocabulary"):
        ours, theirs = getattr(model, name), getattr(baseline, name)
        if None not in (ours, theirs) and ours != theirs:
            raise SpecError(
                f"tuning.baseline is another model: {name} {theirs}, not {ours}",
                fix="give the model that was quantized, or leave tuning.baseline out",
            )


def check_same_code(model: Mapping[str, str], baseline: Mapping[str, str]) -> None:
    """Raise `SpecError` for a baseline with other code than the model's, which alone is trusted.

    Both are digests by file. If the model has no code, none is run.
    """
    other = next((name for name, digest in baseline.items() if model and model.get(name) != digest), None)
    if other is not None:
        raise SpecError(
            f"tuning.baseline brings other code than the model: {other}",
            fix="give a baseline with the same code, or leave tuning.baseline out",
        )


def _check_context(tuning: Tuning, most: int | None) -> None:
    """Raise `SpecError` for a longer context than the model supports; if it does not say, the engine will."""
    if most is not None and tuning.context > most:
        raise SpecError(
            f"tuning.context is {tuning.context}, but the model supports at most {most} tokens",
            fix=f"set tuning.context to {most} or less",
        )


def by_guidellm(tuning: Tuning) -> bool:
    """Whether guidellm sends the load."""
    return tuning.load_generator is LoadGenerator.GUIDELLM


def serving_config(request: TuningRequest, facts: TuningFacts) -> ServingConfig:
    """How the engine serves while it is tuned, but for batch size and steps.

    An engine that loads GGUF files fits its layers to the GPUs itself; the others split each layer over all of them.
    """
    count, by_layer = request.hardware.gpus, _card(request).loads_gguf
    fraction = request.objectives.memory_fraction
    return ServingConfig(
        served_name=request.name,
        batch=1,
        context=request.tuning.context,
        threads=request.hardware.cpus or facts.cpus,
        gpu_layers=FITTED if count and by_layer else 0,
        gpus=0 if by_layer else _split_over(request, facts),
        gpu_indices=tuple(one.number for one in facts.gpus[: _split_over(request, facts)]),
        memory_fraction=max(0.01, round(fraction - _HELD_BEYOND, 4)) if count else fraction,
        kv_bytes_per_token=facts.source.shape.widest_kv_bytes_per_token,
        chat=facts.chat,
        task=facts.purpose.task,
        pooling=facts.purpose.pooling,
        **offered(request.serving),
        remote_code=dict(facts.remote_code),
        engine_args=request.engine_args,
        engine_env=request.engine_env,
    )


def _split_over(request: TuningRequest, facts: TuningFacts) -> int:
    """The GPUs that are used: all that the request gives, or of an engine that splits each layer, as many as the
    attention heads can be dealt out to. Fewer key-value heads than GPUs are copied, so either number divides the
    other. If the number of heads is not known, the engine will say."""
    count, shape = request.hardware.gpus, facts.source.shape
    heads, kv_heads = shape.heads, shape.kv_heads
    if not _card(request).find_knob("tensor_parallel") or heads is None or kv_heads is None:
        return count
    return next(
        (
            gpus
            for gpus in range(count, 0, -1)
            if heads % gpus == 0 and (kv_heads % gpus == 0 or gpus % kv_heads == 0)
        ),
        0,
    )


def refused_formats(request: TuningRequest, facts: TuningFacts) -> dict[CandidateFormat, str]:
    """The formats that the engine cannot compute in on the GPUs in use, or on the CPU, or that the family
    overflows in, each with the reason."""
    capabilities = [one.gpu.compute_capability for one in facts.gpus]
    reasons = {
        form: why_not_here(request.engine, form, capabilities, facts.family)
        for form in request.tuning.candidates
    }
    return {form: reason for form, reason in reasons.items() if reason}


def needs_quantizer(request: TuningRequest, refused: dict[CandidateFormat, str]) -> bool:
    """Whether a format that can be measured is made by the quantizer."""
    if _card(request).loads_gguf:
        return False
    made_without = (*PLAIN, CandidateFormat.AS_IS)
    return any(form not in made_without and form not in refused for form in request.tuning.candidates)


def quantization_request(
    request: TuningRequest,
    facts: TuningFacts,
    refused: dict[CandidateFormat, str],
    *,
    text: str | None,
    task_items: tuple[TaskItem, ...],
    calibration: Calibration | None,
) -> QuantizationRequest:
    """What the quantization stage is asked, with the texts that the spec names."""
    tuning, objectives, card = request.tuning, request.objectives, _card(request)
    assert card.scored_by is not None  # checked with the formats
    wanted = objectives.task_tolerance
    return QuantizationRequest(
        model_dir=request.model_dir,
        model_digest=request.model_digest,
        formats=_formats(request, facts),
        text=text,
        tokens=tuning.quality_tokens,
        context=tuning.context,
        tolerance=objectives.quality_tolerance,
        task_items=task_items,
        task_tolerance=objectives.quality_tolerance if wanted is None else wanted,
        policy=objectives.policy,
        memory_bytes=_servable_bytes(request, facts),
        layout=card.layouts[0],
        unpacks=card.unpacks_weights,
        infeasible=refused,
        calibration=calibration,
        scored_by=card.scored_by,
        as_is=facts.source.as_is,
        stored_as=facts.source.stored_as,
        task=facts.purpose.task,
        pooling=facts.purpose.pooling,
        baseline=facts.baseline,
    )


def _formats(request: TuningRequest, facts: TuningFacts) -> tuple[CandidateFormat, ...]:
    if not facts.source.as_is:
        return request.tuning.candidates
    return (*((facts.baseline.format,) if facts.baseline else ()), CandidateFormat.AS_IS)


def quantization_inputs(
    request: TuningRequest, config: ServingConfig, asked: QuantizationRequest
) -> dict[str, Any]:
    """What the choice of a format depends on."""
    apart = {"model_dir", "text", "task_items", "calibration", "baseline"}
    if not asked.as_is:  # so that records of before there was such a model still count
        apart |= {"as_is", "stored_as"}
    if asked.task is Task.GENERATE:  # the same
        apart |= {"task", "pooling"}
    return {
        **_common_inputs(request, config),
        **asked.model_dump(mode="json", exclude=apart),
        "text_digest": digest_of(asked.text),
        "task_set_digest": digest_of([one.model_dump() for one in asked.task_items]),
        "maker_digests": [maker_digest(asked, form) for form in asked.formats],
        **({"baseline_digest": asked.baseline.model_digest} if asked.baseline else {}),
    }


def batching_request(request: TuningRequest, facts: TuningFacts, candidate: Candidate) -> BatchingRequest:
    """The request to the batching stage for the chosen candidate."""
    return BatchingRequest(
        model_file=candidate.path,
        config=serving_config(request, facts),
        output_tokens=request.tuning.output_tokens,
        limits=_limits(request, facts),
        load=request.tuning.load,
        steps=_step_space(request, facts),
    )


def batching_inputs(request: TuningRequest, candidate: Candidate, asked: BatchingRequest) -> dict[str, Any]:
    """What the choice of a batch size depends on."""
    return {
        **_common_inputs(request, asked.config),
        "candidate_digest": candidate.digest,
        "format": candidate.format.value,
        "context": asked.config.context,
        "load_generator": list(REQUIREMENTS) if by_guidellm(request.tuning) else "builtin",
        **asked.model_dump(mode="json", include={"output_tokens", "load", "limits", "steps"}),
        # Without a template nothing has changed, and records of earlier versions count.
        **({"chat_template": asked.config.chat.digest} if asked.config.chat else {}),
        **(_task_of(asked.config) if asked.config.task is not Task.GENERATE else {}),
    }


def _task_of(config: ServingConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", include={"task", "pooling"})


def _common_inputs(request: TuningRequest, config: ServingConfig) -> dict[str, Any]:
    return {
        "engine": request.engine.value,
        "environment_digest": request.environment_digest,
        "model_digest": request.model_digest,
        **config.model_dump(mode="json", include={"threads", "gpu_layers", "gpus", "memory_fraction"}),
        # Only those that are given: records of before there were any still count.
        **{name: given for name in ("engine_args", "engine_env") if (given := getattr(request, name))},
        **({"remote_code": config.remote_code} if config.remote_code else {}),
    }


def _card(request: TuningRequest) -> EngineCard:
    return get_engine(request.engine).card


def _prompt_tokens(tuning: Tuning) -> int:
    return tuning.load.prompt_tokens or prompt_for(tuning.context, tuning.output_tokens)


def _limits(request: TuningRequest, facts: TuningFacts) -> Limits:
    tuning = request.tuning
    asked = request.objectives
    wanted = {"ttft_p95": asked.ttft_ms, "tpot_p95": asked.tpot_ms, "latency_p95": asked.latency_ms}
    return Limits(
        memory_bytes=_usable_bytes(request, facts),
        latency_ms={name: bound for name, bound in wanted.items() if bound is not None},
        tolerance=tuning.tolerance,
        max_batch=min(tuning.max_batch, _card(request).max_batch),
        rate_per_s=tuning.load.rate,
        request_tokens=_prompt_tokens(tuning) + longest_output(tuning.output_tokens),
        taken_at_start=request.hardware.gpus > 0,
    )


def _step_space(request: TuningRequest, facts: TuningFacts) -> StepSpace | None:
    """The steps that are searched around the batch size; None if the engine has no choice of them."""
    if facts.purpose.task is not Task.GENERATE:
        return None  # a step holds whole texts
    card, tuning = _card(request), request.tuning
    smallest = min(_gpu_sizes(request, facts), default=0)
    batched, micro = (_step_tokens(card, name, smallest) for name in ("batched_tokens", "micro_batch_tokens"))
    if not batched.values and not micro.values:
        return None
    return StepSpace(
        limits=_limits(request, facts),
        batched_tokens=batched,
        micro_batch_tokens=micro,
        requests=Requests(prompt_tokens=_prompt_tokens(tuning), output_tokens=tuning.output_tokens),
        by_slot=card.fills_steps_by_slot,
    )


def _step_tokens(card: EngineCard, name: str, gpu_bytes: int) -> StepTokens:
    knob = card.find_knob(name)
    return StepTokens(default=knob.default_on(gpu_bytes), values=knob.values) if knob else StepTokens()


def _gpu_sizes(request: TuningRequest, facts: TuningFacts) -> list[int]:
    """Memory of the GPUs that are used, bytes, without those that do not report it."""
    used = facts.gpus[: _split_over(request, facts)]
    return [one.gpu.memory_bytes for one in used if one.gpu.memory_bytes]


def _host_bytes(request: TuningRequest, facts: TuningFacts) -> int:
    """Memory of the host, or the limit that the spec sets."""
    return request.hardware.memory or facts.host_bytes // _MEMORY_STEP * _MEMORY_STEP


def _usable_bytes(request: TuningRequest, facts: TuningFacts) -> int:
    """The limit that measured memory is held against: the GPUs' if they are used, else the host's, which is what
    GPUs have as well that have none of their own."""
    found = sum(_gpu_sizes(request, facts)) or _host_bytes(request, facts)
    return int(found * request.objectives.memory_fraction)


def _servable_bytes(request: TuningRequest, facts: TuningFacts) -> int:
    """What a model may take to be served at all: of an engine that offloads layers, the host's memory as well."""
    usable = _usable_bytes(request, facts)
    if _gpu_sizes(request, facts) and _card(request).find_knob("offload"):
        usable += int(_host_bytes(request, facts) * request.objectives.memory_fraction)
    return usable
