"""Which stages of this run measure again even if a record could be used, because the user asked for it."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar

from tasks.core.verdicts import StageName

STAGES = (
    StageName.ENVIRONMENT,
    StageName.COMPATIBILITY,
    StageName.STAGING,
    StageName.DISK,
    StageName.QUANTIZATION,
    StageName.BATCHING,
)
"""Stages for which a deploy may use a record instead of doing the work."""

_fresh: ContextVar[frozenset[StageName]] = ContextVar("slipway_fresh", default=frozenset())


def measure_anew(stages: Iterable[StageName]) -> None:
    """In this context, and in contexts copied from it, these stages do their work whatever the records say."""
    _fresh.set(frozenset(stages))


def is_fresh(stage: StageName) -> bool:
    """Whether this stage measures again."""
    return stage in _fresh.get()
