"""The batching stage's step as a Prefect task; its result is kept by the stage's record."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.batching import apply
from tasks.batching.apply import ServingBench
from tasks.batching.models import BatchingRequest, BatchingResult


@task(name="find-batch", cache_policy=NO_CACHE)
def find_batch(request: BatchingRequest, bench: ServingBench, prior: int | None) -> BatchingResult:
    """Serve at several sizes under load, and choose one."""
    return apply.find_batch(request, bench, prior)
