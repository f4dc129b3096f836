"""A run's log in Prefect, including its subflows' lines: by default Prefect only shows a run's own lines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from prefect import get_run_logger
from prefect.context import FlowRunContext

from tasks.core.progress import added_listener
from tasks.core.verdicts import StageName


@contextlib.contextmanager
def follow_subflows(own: StageName) -> Iterator[None]:
    """Log the lines of subflows in the calling run while the block runs; `own` lines are there already."""
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
