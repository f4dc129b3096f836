"""What a deploy with an engine still lacks. Asked before anything is locked, built or copied. Pure."""

from __future__ import annotations

from tasks.core.errors import SpecError
from tasks.core.spec import DeploySpec, EngineKind, Target
from tasks.engines.catalogue import get_engine

DEPLOYED = EngineKind.LLAMA_CPP


def what_is_missing(spec: DeploySpec) -> str | None:
    """In one line; None for what can be deployed."""
    card = get_engine(spec.engine).card
    if card.missing is not None:
        return card.missing
    if spec.rollout.image is not None:
        return f"running a stock image: the image of {spec.engine} is built from its lock, so leave rollout.image out"
    return None


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
