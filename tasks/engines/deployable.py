"""What a deploy with an engine still lacks. Asked before anything is locked, built or copied. Pure."""

from __future__ import annotations

from tasks.core.errors import SpecError
from tasks.core.spec import DEFAULT_ENGINE, DeploySpec, EngineKind, EnvironmentManager
from tasks.engines.catalogue import get_engine

_USE_ANOTHER = f"use engine: {DEFAULT_ENGINE}"


def refusal(spec: DeploySpec) -> SpecError | None:
    """The one line that a deploy stops with, and what can be done today; None for what can be deployed."""
    engine = get_engine(spec.engine)
    card = engine.card
    if card.missing is not None:
        return SpecError(f"{spec.engine} cannot be deployed yet: {card.missing}", fix=_USE_ANOTHER)
    if spec.target.in_image and engine.server_worker is None:
        return SpecError(
            f"{spec.engine} cannot be deployed with target: {spec.target} yet: no image is built from its lock",
            fix="set target: process",
        )
    if _needs_gpu(spec) and not spec.hardware.gpus:
        return SpecError(
            f"{spec.engine} computes on GPUs, and hardware.gpus is 0",
            fix=f"set hardware.gpus, or {_USE_ANOTHER}",
        )
    return None


def wants_absent_gpu(spec: DeploySpec, gpus: int) -> bool:
    """Whether the engine needs a GPU on a host that has `gpus` of them: of its build, gigabytes, nothing is installed
    before this host is judged."""
    return _needs_gpu(spec) and gpus == 0


def check_tunable(kind: EngineKind) -> None:
    """Raise `SpecError` for an engine that no candidates can be made and measured for yet."""
    missing = get_engine(kind).card.missing
    if missing is not None:
        raise SpecError(f"{kind} cannot be tuned yet: {missing}", fix=_USE_ANOTHER)


def _needs_gpu(spec: DeploySpec) -> bool:
    """What is installed already may be a build for the processor."""
    return (
        get_engine(spec.engine).card.needs_gpu and spec.environment.manager is not EnvironmentManager.SYSTEM
    )
