"""What a deploy does, what it is refused for, and the release that it makes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tasks.batching.models import BatchingResult
from tasks.core.addresses import host_and_port, is_loopback
from tasks.core.errors import SpecError
from tasks.core.release import Launch, Release
from tasks.core.serving import Loader
from tasks.core.spec import DeploySpec
from tasks.core.spec_kinds import DEFAULT_ENGINE, EnvironmentManager, LoadGenerator
from tasks.core.spec_sections import Tuning
from tasks.core.verdicts import StageName
from tasks.engines.base import Engine
from tasks.engines.card import EngineCard
from tasks.engines.catalogue import get_engine
from tasks.environment.models import EnvironmentResult
from tasks.lifecycle.models import StageRow
from tasks.quantization.models import QuantizationResult
from tasks.staging.models import StagingResult

STAGES = 7
"""The stages of a complete deploy: environment, compatibility, staging, quantization, batching, rollout, health."""

_USE_ANOTHER = f"use engine: {DEFAULT_ENGINE}"


@dataclass(frozen=True)
class Step:
    """One stage and what it would do."""

    stage: StageName
    does: str


def warnings_of(spec: DeploySpec) -> tuple[str, ...]:
    """What the spec allows, and the user may not have meant."""
    if spec.serving.api_key is None and (warning := open_to_others(spec.rollout.host)):
        return (warning,)
    return ()


def open_to_others(host: str) -> str | None:
    """The warning for a service that listens there without keys; None if only this host can reach it."""
    if is_loopback(host):
        return None
    return f"everyone who can reach {host} may use the service: it needs no key (serving.api_key)"


def plan_without(judged: str, missing: str | None) -> list[Step]:
    """What a deploy does with an engine that cannot be deployed yet, or not here: judge this host, and stop."""
    why = f": {missing}" if missing else ""
    return [
        Step(StageName.COMPATIBILITY, judged),
        Step(StageName.ENVIRONMENT, f"stop before anything is built{why}"),
    ]


def plan_of(spec: DeploySpec, model: str, stored_as: str | None = None) -> list[Step]:
    """The stages in order. `model` is what is known of the spec's model, `stored_as` the quantization of one that
    is served as it comes."""
    engine = get_engine(spec.engine)
    requirements = ", ".join(
        (*engine.card.requirements_of(spec.engine_version), *spec.environment.requirements)
    )
    formats = ", ".join(spec.tuning.candidates)
    text = spec.tuning.quality_text.name if spec.tuning.quality_text else "no text"
    return [
        Step(
            StageName.ENVIRONMENT,
            f"lock {requirements} for Python {spec.environment.python}, build it, start {spec.engine} in it",
        ),
        Step(StageName.COMPATIBILITY, f"survey this host and judge it for {spec.engine}"),
        Step(
            StageName.STAGING,
            f"copy {model} as it is, and verify it"
            if stored_as
            else f"copy {model} into verified shards ({spec.staging.shards})",
        ),
        Step(
            StageName.QUANTIZATION,
            f"make nothing: the model is in {stored_as}; measure quality on {text}, size and speed"
            if stored_as
            else f"make {formats}; measure quality on {text}, size and speed; choose",
        ),
        Step(
            StageName.BATCHING,
            f"measure batch sizes up to {spec.tuning.max_batch} at {spec.tuning.context} tokens of context"
            + _load(spec.tuning)
            + _placement(spec, engine.card),
        ),
        Step(StageName.ROLLOUT, _rollout(spec)),
        Step(StageName.HEALTH, "check the GPU if any, the process, and a completion from the service"),
    ]


def _load(tuning: Tuning) -> str:
    """The load, if it is not the default."""
    rate = f", {tuning.load.rate:g} requests/s" if tuning.load.rate is not None else ""
    by = ", by guidellm in its own environment" if tuning.load_generator is LoadGenerator.GUIDELLM else ""
    return rate + by


def _placement(spec: DeploySpec, card: EngineCard) -> str:
    """Who decides how the model lies on GPUs."""
    gpus = spec.hardware.gpus
    which = "the GPU" if gpus == 1 else f"{gpus} GPUs"
    share = f"{spec.objectives.memory_fraction:.0%} of the memory of {which}"
    if not gpus:
        return ""
    if card.loads_gguf:
        return f"; {card.kind} decides at each size how many layers it puts into {share}"
    cache = ", and says how much its cache holds" if card.start_log else ""
    return f"; {card.kind} takes at most {share}{cache}"


def _rollout(spec: DeploySpec) -> str:
    host = spec.rollout.host
    address = host_and_port(host, spec.rollout.port) if spec.rollout.port else f"a free port of {host}"
    own, base = spec.rollout.image, spec.rollout.base_image
    image = f"in a container of {own}" if own else f"in a container on {base}"
    where = image if spec.target.in_image else "as a supervised process"
    return (
        f"start {spec.engine} {where}{_given(spec)}, pass the gate (health, one completion), "
        f"then switch {address} to it and drain the previous release "
        f"for at most {spec.rollout.drain_s:.0f} s"
    )


def _given(spec: DeploySpec) -> str:
    """The names of what the spec hands to the engine."""
    names = [*(f"--{name}" for name in spec.engine_args), *spec.engine_env]
    return f" with {', '.join(names)}" if names else ""


def refusal(spec: DeploySpec) -> SpecError | None:
    """The refusal of a deploy, with the way out; None if the spec can be deployed."""
    engine = get_engine(spec.engine)
    card = engine.card
    if card.missing is not None:
        return SpecError(f"{spec.engine} cannot be deployed yet: {card.missing}", fix=_USE_ANOTHER)
    if spec.target.in_image and (refused := _image_refusal(spec, engine)):
        return refused
    if _needs_gpu(spec) and not spec.hardware.gpus:
        return SpecError(
            f"{spec.engine} needs a GPU, but hardware.gpus is 0",
            fix=f"set hardware.gpus, or {_USE_ANOTHER}",
        )
    return None


def _image_refusal(spec: DeploySpec, engine: Engine) -> SpecError | None:
    """Why there is no image for the spec; None if there is one, or if one can be built."""
    makers = engine.card.image
    if spec.rollout.image is not None and makers is None:
        return SpecError(
            f"rollout.image: how an image of {spec.engine}'s makers is started is not known",
            fix="remove it: Slipway builds the image" if engine.builds_images else "set target: process",
        )
    if spec.rollout.image is None and not engine.builds_images:
        version = spec.engine_version or engine.card.version
        instead = f"set rollout.image, such as {makers.name_of(version)}, or " if makers else "set "
        return SpecError(
            f"{spec.engine} cannot be deployed with target: {spec.target} like this: Slipway builds no image of it",
            fix=f"{instead}target: process",
        )
    return None


def wants_absent_gpu(spec: DeploySpec, gpus: int) -> bool:
    """Whether the engine needs a GPU on a host without one (`gpus` is 0). Such a build takes gigabytes, so the
    host is judged before anything is installed."""
    return _needs_gpu(spec) and gpus == 0


def _needs_gpu(spec: DeploySpec) -> bool:
    """An installed build may be for the CPU."""
    return (
        get_engine(spec.engine).card.needs_gpu and spec.environment.manager is not EnvironmentManager.SYSTEM
    )


def is_doubtful(rows: Sequence[StageRow]) -> bool:
    """Whether an engine may have failed because its environment is damaged.

    A no of tuning has the lines of an engine that failed. Without them the engine worked, and was not good enough.
    """
    return any(row.says_no and (row.log_tail or row.stage is StageName.ROLLOUT) for row in rows)


def make_release(
    spec: DeploySpec,
    environment: EnvironmentResult,
    staging: StagingResult,
    quantization: QuantizationResult,
    batching: BatchingResult,
    *,
    model_version: str | None,
    worker: Path | None,
    loader: tuple[Loader, str] | None,
    records: Sequence[str],
    now: datetime,
) -> Release:
    """The immutable result of a deploy.

    `model_version` is what the spec's alias names now; `worker` the engine's server script, if it needs one;
    `loader` the loader that this host's comparison chose, and its record.
    """
    engine = get_engine(spec.engine)
    config = batching.config.model_copy(update={"loader": loader[0] if loader else None})
    candidate = quantization.candidate
    command = engine.command(str(environment.python_path), str(worker), str(candidate.path), config)
    return Release(
        at=now,
        spec=spec,
        engine=spec.engine,
        engine_version=environment.engine_version,
        target=spec.target,
        environment_digest=environment.lock_digest,
        environment_path=environment.environment_path,
        lock_path=environment.lock_path,
        model_source=staging.source,
        model_version=model_version,
        model_digest=staging.manifest_digest,
        candidate_format=candidate.title,
        candidate_digest=candidate.digest,
        config=config,
        launch=Launch(argv=command.argv, env=command.env, model_file=candidate.path),
        records=(*records, *([loader[1]] if loader else [])),
    )
