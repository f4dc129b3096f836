"""The leak check's steps as Prefect tasks. They look at the present, so nothing can be cached."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.core.errors import WrongUseError
from tasks.leaks import apply, plan
from tasks.leaks.models import LeakRequest, LeakResult


@task(name="judge-samples", cache_policy=NO_CACHE)
def judge_samples(samples: Path, request: LeakRequest) -> LeakResult:
    """The verdict on what the sampler has written so far."""
    try:
        runs = apply.read_runs(samples)
    except WrongUseError as error:
        return plan.unjudged(f"the samples of the running engine cannot be read: {error.what}")
    return plan.judge(runs, request)
