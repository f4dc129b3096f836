"""Runs whose process was killed stay `Running` in Prefect's database; the service's next run ends them.

Services are this host's, and so are their leases: of a service of the same name on another node that reports to
the same server nothing is known here.
"""

from __future__ import annotations

import platform
from typing import Any
from uuid import UUID

from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import State, StateType
from prefect.states import Crashed

_ALIVE = [StateType.PENDING, StateType.RUNNING]


def service_tag(name: str) -> str:
    """Tag of all runs that work on one service of this host."""
    return f"service:{name}@{platform.node()}"


def end_stale_runs(name: str, own_run: UUID, own_tags: list[str]) -> int:
    """Mark runs of this service, and their tasks, as crashed, tag the caller's own; how many runs were stale.

    Call while holding the service's lease, before any subflow starts: whatever else runs by Prefect's account
    cannot be alive then.
    """
    tag = service_tag(name)
    wanted = FlowRunFilter(
        tags=FlowRunFilterTags(all_=[tag]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_ALIVE)),
    )
    state: State[Any] = Crashed(message="its process was killed; found by the service's next run")
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=wanted)
        stale = [run.id for run in runs if run.id != own_run]
        for run in stale:
            client.set_flow_run_state(run, state, force=True)
        for task in _living_tasks(client, stale):
            client.set_task_run_state(task, state, force=True)
        client.update_flow_run(own_run, tags=sorted({*own_tags, tag}))
    return len(stale)


def _living_tasks(client: SyncPrefectClient, runs: list[UUID]) -> list[UUID]:
    """Tasks of these runs that go on by Prefect's account, those that stand for subflows among them."""
    if not runs:
        return []
    found = client.read_task_runs(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=runs)),
        task_run_filter=TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=_ALIVE))),
    )
    return [task.id for task in found]
