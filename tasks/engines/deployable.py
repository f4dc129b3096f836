"""What a deploy with an engine still lacks. Asked before anything is locked, built or copied. Pure."""

from __future__ import annotations

from tasks.core.errors import SpecError
from tasks.core.spec import DeploySpec, EngineKind, EnvironmentManager, Target
from tasks.engines.catalogue import get_engine

DEPLOYED = EngineKind.LLAMA_CPP


def what_is_missing(spec: DeploySpec) -> str | None:
    """In one line; None for what can be deployed."""
    engine = get_engine(spec.engine)
    card = engine.card
    if card.missing is not None:
        return card.missing
    if spec.target is Target.DOCKER and engine.server_worker is None:
        return "running a stock image: none is built from its lock; the target process runs it"
    if spec.rollout.image is not None:
        return f"running a stock image: the image of {spec.engine} is built from its lock, so leave rollout.image out"
    return None


def wants_absent_gpu(spec: DeploySpec, gpus: int) -> bool:
    """Whether the engine needs a GPU on a host that has `gpus` of them: what its build needs of gigabytes is not
    installed before this host is judged. What is installed already may be a build for the processor."""
    needs = get_engine(spec.engine).needs_gpu and spec.environment.manager is not EnvironmentManager.SYSTEM
    return needs and gpus == 0


def refusal(spec: DeploySpec, missing: str) -> SpecError:
    """The one line that a deploy stops with, and what can be done today."""
    return SpecError(f"{spec.engine} cannot be deployed yet: {missing}", fix=_way_out(spec))


def check_tunable(kind: EngineKind) -> None:
    """Raise `SpecError` for an engine that no candidates can be made and measured for yet."""
    missing = get_engine(kind).card.missing
    if missing is not None:
        raise SpecError(f"{kind} cannot be tuned yet: {missing}", fix=f"use engine: {DEPLOYED}")


def _way_out(spec: DeploySpec) -> str:
    card = get_engine(spec.engine).card
    if spec.target is Target.DOCKER and card.image is not None and spec.rollout.image is None:
        image = f"{card.image.repository}:{card.image.documented_tag}"
        return (
            f"use engine: {DEPLOYED}; for later, look up the digest of {image} and give it as rollout.image"
        )
    return f"use engine: {DEPLOYED}"
