"""A run's log in Prefect: what its subflows say is in it, too. Prefect shows of a run its own lines only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from prefect import get_run_logger
from prefect.context import FlowRunContext

from tasks.core.progress import added_listener
from tasks.core.verdicts import StageName


@contextlib.contextmanager
def follow_subflows(own: StageName) -> Iterator[None]:
    """Log in the calling run what is said in its subflows while the block runs; `own` lines are in it already."""
    context = FlowRunContext.get()
    if context is None:
        yield
        return
    logger, own_id = get_run_logger(), context.flow_run.id if context.flow_run else None

    def relay(stage: str, line: str) -> None:
        speaking = FlowRunContext.get()
        if stage != own and speaking and speaking.flow_run and speaking.flow_run.id != own_id:
            logger.info("%s: %s", stage, line)

    with added_listener(relay):
        yield
