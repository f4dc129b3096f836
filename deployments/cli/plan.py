"""What a deploy would do, without doing it. Pure except for reading the model's folder."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.core.addresses import host_and_port
from tasks.core.errors import ModelError
from tasks.core.model_shape import read_model_shape
from tasks.core.sources import local_folder
from tasks.core.spec import DeploySpec, LoadGenerator, Tuning
from tasks.core.verdicts import StageName
from tasks.engines.catalogue import get_engine


@dataclass(frozen=True)
class Step:
    """One stage and what it would do."""

    stage: StageName
    does: str


def plan_without(judged: str, missing: str | None) -> list[Step]:
    """What a deploy does with an engine that cannot be deployed yet, or not here: judge this host, and stop."""
    why = f": {missing}" if missing else ""
    return [
        Step(StageName.COMPATIBILITY, judged),
        Step(StageName.ENVIRONMENT, f"stop before anything is built{why}"),
    ]


def plan_of(spec: DeploySpec) -> list[Step]:
    """The stages in order. Raises `ModelError` for a local model that is not there."""
    engine = get_engine(spec.engine)
    requirements = ", ".join((*engine.card.requirements, *spec.environment.requirements))
    formats = ", ".join(spec.tuning.candidates)
    text = spec.tuning.quality_text.name if spec.tuning.quality_text else "no text"
    return [
        Step(
            StageName.ENVIRONMENT,
            f"lock {requirements} for Python {spec.environment.python}, build it, start {spec.engine} in it",
        ),
        Step(StageName.COMPATIBILITY, f"survey this host and judge it for {spec.engine}"),
        Step(StageName.STAGING, f"copy {_model(spec)} into verified shards ({spec.staging.shards})"),
        Step(StageName.QUANTIZATION, f"make {formats}; measure quality on {text}, size and speed; choose"),
        Step(
            StageName.BATCHING,
            f"measure batch sizes up to {spec.tuning.max_batch} at {spec.tuning.context} tokens of context"
            + _load(spec.tuning),
        ),
        Step(StageName.ROLLOUT, _rollout(spec)),
        Step(StageName.HEALTH, "check the GPU if any, the process, and a completion from the service"),
    ]


def _load(tuning: Tuning) -> str:
    """What is said of the load, where it is not the default one."""
    rate = f", {tuning.load.rate:g} requests/s" if tuning.load.rate is not None else ""
    by = ", by guidellm in its own environment" if tuning.load_generator is LoadGenerator.GUIDELLM else ""
    return rate + by


def _model(spec: DeploySpec) -> str:
    folder = local_folder(spec.model)
    if folder is None:
        return spec.model
    if not folder.is_dir():
        raise ModelError(f"no model folder {folder}", fix="correct `model:` in the spec")
    shape = read_model_shape(folder)
    return f"{spec.model} ({shape.family}, {shape.layers} layers, hidden {shape.hidden})"


def _rollout(spec: DeploySpec) -> str:
    host = spec.rollout.host
    address = host_and_port(host, spec.rollout.port) if spec.rollout.port else f"a free port of {host}"
    image = spec.rollout.base_image
    where = f"in a container on {image}" if spec.target.in_image else "as a supervised process"
    return (
        f"start {spec.engine} {where}, pass the gate (health, one completion), "
        f"then switch {address} to it and drain the previous release "
        f"for at most {spec.rollout.drain_s:.0f} s"
    )
