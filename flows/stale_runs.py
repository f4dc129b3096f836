"""Runs whose process was killed stay `Running` in Prefect's database; the service's next run ends them.

Services are this host's, and so are their leases: of a service of the same name on another node that reports to
the same server nothing is known here.
"""

from __future__ import annotations

import platform
from typing import Any
from uuid import UUID

from prefect import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import State, StateType
from prefect.states import Crashed


def service_tag(name: str) -> str:
    """Tag of all runs that work on one service of this host."""
    return f"service:{name}@{platform.node()}"


def end_stale_runs(name: str, own_run: UUID, own_tags: list[str]) -> int:
    """Mark runs of this service as crashed, tag the caller's own; how many were stale.

    Call while holding the service's lease, before any subflow starts: whatever else runs by Prefect's account
    cannot be alive then.
    """
    tag = service_tag(name)
    wanted = FlowRunFilter(
        tags=FlowRunFilterTags(all_=[tag]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING])),
    )
    with get_client(sync_client=True) as client:
        stale = [run for run in client.read_flow_runs(flow_run_filter=wanted) if run.id != own_run]
        for run in stale:
            state: State[Any] = Crashed(message="its process was killed; found by the service's next run")
            client.set_flow_run_state(run.id, state, force=True)
        client.update_flow_run(own_run, tags=sorted({*own_tags, tag}))
    return len(stale)
