"""Which stages of a run measure anew, whatever the records say: a request of the user's for this run only."""

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
"""Those for whose work a record may stand in during a deploy."""

_fresh: ContextVar[frozenset[StageName]] = ContextVar("slipway_fresh", default=frozenset())


def measure_anew(stages: Iterable[StageName]) -> None:
    """In this context, and in contexts copied from it, no record stands in for the work of these stages."""
    _fresh.set(frozenset(stages))


def is_fresh(stage: StageName) -> bool:
    """Whether this stage measures anew."""
    return stage in _fresh.get()
