"""The stage's effects as Prefect tasks, so that a run shows each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from tasks.core.errors import SlipwayError
from tasks.staging import apply
from tasks.staging.apply import CopyPlan, Staged
from tasks.staging.source import Pinned


def _is_retryable(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Retry only faults that may pass by themselves; a copy continues after its last finished chunk."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, SlipwayError) and error.retryable


@task(
    name="copy-shards",
    task_run_name="copy to {folder}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=2,
    retry_delay_seconds=[2, 10],
    retry_condition_fn=_is_retryable,
)
def copy_shards(pinned: Pinned, plan: CopyPlan, folder: Path, *, leases: Path, own: bool) -> Staged:
    """`apply.stage_model`, retried when the network fails."""
    return apply.stage_model(pinned, plan, folder, leases=leases, own=own)
