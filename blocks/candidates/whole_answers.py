"""What a candidate for embeddings or rankings answers to the texts that it is compared by."""

from __future__ import annotations

from blocks.engine.api import EngineApi
from tasks.core.cancellation import current
from tasks.core.serving import ServingConfig
from tasks.quantization.models import TrialPlan

_AT_ONCE = 8
"""Texts of one request."""


def whole_answers(api: EngineApi, config: ServingConfig, plan: TrialPlan) -> tuple[tuple[float, ...], ...]:
    """The embedding of each text, or the scores of each query's documents; nothing without any.

    Raises `EngineError`.
    """
    rows: list[tuple[float, ...]] = []
    for start in range(0, len(plan.texts), _AT_ONCE):
        current().check()
        rows += api.embeddings(config.served_name, plan.texts[start : start + _AT_ONCE])
    for query, documents in plan.questions:
        current().check()
        rows.append(tuple(api.scores(config.served_name, query, documents)))
    return tuple(rows)
