"""Runs of scheduled looks that found nothing new: Prefect cannot skip a run, so each look removes those before it."""

from __future__ import annotations

import httpx
from prefect import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateName,
)
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound, PrefectException

from tasks.core.progress import say
from tasks.core.verdicts import StageName

NOTHING_NEW = "Nothing new"
"""State of a look that found the same as the one before."""

WAITING = "Waiting"
"""State of a look at a service that is down, and will only be started at a later look."""

_QUIET = (NOTHING_NEW, WAITING, "Cancelled")
"""A look that finds another one running is cancelled before it begins."""


def forget_quiet_runs(stage: StageName) -> None:
    """Remove earlier quiet runs of the calling run's deployment. A failure of this does not fail the look."""
    context = FlowRunContext.get()
    own = context.flow_run if context else None
    if own is None or own.deployment_id is None:
        return
    quiet = FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=list(_QUIET))))
    same = DeploymentFilter(id=DeploymentFilterId(any_=[own.deployment_id]))
    try:
        with get_client(sync_client=True) as client:
            for run in client.read_flow_runs(flow_run_filter=quiet, deployment_filter=same):
                try:
                    client.delete_flow_run(run.id)
                except ObjectNotFound:
                    continue
    except (PrefectException, httpx.HTTPError) as error:
        say(stage, f"could not remove the runs of earlier checks from Prefect's list: {error}")
