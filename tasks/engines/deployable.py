"""What a deploy with an engine still lacks. Asked before anything is locked, built or copied. Pure."""

from __future__ import annotations

from tasks.core.errors import SpecError
from tasks.core.spec import DeploySpec, EngineKind, EnvironmentManager, Target
from tasks.engines.catalogue import get_engine

_EMBEDDED = EngineKind.LLAMA_CPP


def what_is_missing(spec: DeploySpec) -> str | None:
    """In one line; None for what can be deployed."""
    engine = get_engine(spec.engine)
    if engine.card.missing is not None:
        return engine.card.missing
    own_image = engine.server_worker is not None
    if spec.target is Target.DOCKER and not own_image:
        return "running a stock image: none is built from its lock"
    if spec.rollout.image is not None:
        built = f"the image of {spec.engine} is built from its lock" if own_image else "no image is run"
        return f"running a stock image: {built}, so leave rollout.image out"
    return None


def refusal(spec: DeploySpec) -> SpecError | None:
    """The one line that a deploy stops with, and what can be done today; None for what can be deployed."""
    missing = what_is_missing(spec)
    if missing is not None:
        return SpecError(f"{spec.engine} cannot be deployed yet: {missing}", fix=_way_out(spec))
    if _needs_gpu(spec) and not spec.hardware.gpus:
        fix = f"set hardware.gpus, or use engine: {_EMBEDDED}"
        return SpecError(f"{spec.engine} computes on GPUs, and hardware.gpus is 0", fix=fix)
    return None


def wants_absent_gpu(spec: DeploySpec, gpus: int) -> bool:
    """Whether the engine needs a GPU on a host that has `gpus` of them: of its build, gigabytes, nothing is installed
    before this host is judged."""
    return _needs_gpu(spec) and gpus == 0


def check_tunable(kind: EngineKind) -> None:
    """Raise `SpecError` for an engine that no candidates can be made and measured for yet."""
    missing = get_engine(kind).card.missing
    if missing is not None:
        raise SpecError(f"{kind} cannot be tuned yet: {missing}", fix=f"use engine: {_EMBEDDED}")


def _needs_gpu(spec: DeploySpec) -> bool:
    """What is installed already may be a build for the processor."""
    return get_engine(spec.engine).needs_gpu and spec.environment.manager is not EnvironmentManager.SYSTEM


def _way_out(spec: DeploySpec) -> str:
    card = get_engine(spec.engine).card
    if card.missing is None:
        return "set target: process" if spec.target is Target.DOCKER else "leave rollout.image out"
    if spec.target is Target.DOCKER and card.image is not None and spec.rollout.image is None:
        image = f"{card.image.repository}:{card.image.documented_tag}"
        return (
            f"use engine: {_EMBEDDED}; for later, look up the digest of {image} and give it as rollout.image"
        )
    return f"use engine: {_EMBEDDED}"
