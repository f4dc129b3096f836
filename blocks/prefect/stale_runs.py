"""Runs whose process was killed stay `Running` in Prefect's database; the service's next run ends them.

Those of the local worker also keep their deployment's only slot: the slot is counted in the database, but the lease
that would free it was in the memory of the server that is gone. `slipway up` ends these.

Services and their leases belong to this host: a service of the same name on another node that reports to the same
server is not visible here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from prefect import get_client, tags
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterParentTaskRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectException
from prefect.states import Crashed
from prefect.utilities.urls import url_for

from blocks.prefect.service_tag import service_tag

_ALIVE = [StateType.PENDING, StateType.RUNNING]
_HOLD_SLOTS = [*_ALIVE, StateType.CANCELLING]


_NO_PARENT = FlowRunFilterParentTaskRunId(is_null_=True)
"""The filter for runs that are not a stage of another run."""


@contextmanager
def only_run_of(name: str) -> Iterator[None]:
    """While the block runs, the calling run is the only one of the service: runs that were killed are ended.

    Enter under the service's lease, before any subflow starts. Outside a run there is nothing to do.
    """
    if FlowRunContext.get() is None:
        yield
        return
    with tags(service_tag(name)):
        end_stale_runs(name)
        yield
        end_stale_tasks(name)


def end_stale_runs(name: str) -> int:
    """Mark runs of this service, and their tasks, as crashed, and tag the calling run; how many runs were stale.

    Call in a flow that holds the service's lease, before any subflow starts: any other run that Prefect
    considers running cannot be alive then.
    """
    own = _own_run()
    tag = service_tag(name)
    wanted = FlowRunFilter(
        tags=FlowRunFilterTags(all_=[tag]), state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_ALIVE))
    )
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=wanted)
        stale = [run.id for run in runs if run.id != own.id]
        for run in stale:
            client.set_flow_run_state(run, _killed("the service's next run"), force=True)
        _end_tasks(client, name)
        client.update_flow_run(own.id, tags=sorted({*own.tags, tag}))
    return len(stale)


def _own_run() -> FlowRun:
    """The calling run. `prefect.runtime` has its id as text, which never equals the server's ids."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    return context.flow_run


def newest_run_page(name: str) -> str | None:
    """Address in Prefect's UI of the last deploy of a service on this host; None without a server."""
    wanted = FlowRunFilter(tags=FlowRunFilterTags(all_=[service_tag(name)]), parent_task_run_id=_NO_PARENT)
    try:
        with get_client(sync_client=True) as client:
            runs = client.read_flow_runs(flow_run_filter=wanted, sort=FlowRunSort.START_TIME_DESC, limit=1)
    except (PrefectException, httpx.HTTPError):
        return None
    return url_for("flow-run", obj_id=runs[0].id) if runs else None


def end_runs_of_pool(pool: str) -> int:
    """Mark a work pool's runs as crashed, which frees their deployments' slots; how many there were.

    Call on a new server, before its first worker: any run that it considers running cannot be alive then.
    """
    wanted = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_HOLD_SLOTS)))
    in_pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool]))
    ended = 0
    with get_client(sync_client=True) as client:
        while runs := client.read_flow_runs(flow_run_filter=wanted, work_pool_filter=in_pool):  # by pages
            for run in runs:
                client.set_flow_run_state(run.id, _killed("the next `slipway up`"), force=True)
            ended += len(runs)
    return ended


def end_stale_tasks(name: str) -> None:
    """End the tasks of killed runs again: Prefect records tasks late, some after their run was found killed."""
    with get_client(sync_client=True) as client:
        _end_tasks(client, name)


def _end_tasks(client: SyncPrefectClient, name: str) -> None:
    """Tasks of crashed runs that Prefect considers running, including those that represent subflows."""
    crashed = FlowRunFilter(
        tags=FlowRunFilterTags(all_=[service_tag(name)]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CRASHED])),
    )
    alive = TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=_ALIVE)))
    for task in client.read_task_runs(flow_run_filter=crashed, task_run_filter=alive):
        client.set_task_run_state(task.id, _killed("the service's next run"), force=True)


def _killed(found_by: str) -> State[Any]:
    return Crashed(message=f"its process was killed; found by {found_by}")
