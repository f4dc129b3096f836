"""Progress of work in a run: an artifact that the steps of a search or the bytes of a copy update, and the run's log.

By default Prefect only shows a run's own lines, and not those of its subflows.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextvars import copy_context

from prefect import get_run_logger
from prefect.context import FlowRunContext

from blocks.prefect.artifacts import ProgressArtifact
from tasks.core.progress import Meter, added_listener, follow_steps, meter, say
from tasks.core.verdicts import StageName

PERIOD_S = 1.0
"""Between two updates of the artifact: each is a request to the server."""

_LINES_EVERY = 2


@contextlib.contextmanager
def show_copy(stage: StageName, subject: str, total_bytes: int) -> Iterator[None]:
    """Show what `advance` counts in the block, from a separate thread, also as a line every other second.

    Nothing for less than a second.
    """
    counted = Meter(total_bytes)
    over = threading.Event()
    watch = threading.Thread(
        target=copy_context().run, args=(_watch, counted, over, stage, subject), name="progress", daemon=True
    )
    meter(counted)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()
        meter(None)


def _watch(counted: Meter, over: threading.Event, stage: StageName, subject: str) -> None:
    artifact = ProgressArtifact(stage, subject)
    looks = 0
    while not over.wait(PERIOD_S):
        progress = counted.progress()
        if not progress.done_bytes:
            continue
        if looks % _LINES_EVERY == 0:
            say(stage, str(progress))
        artifact.show(progress.percent, str(progress))
        looks += 1
    if looks:
        progress = counted.progress()
        artifact.show(progress.percent, str(progress))


@contextlib.contextmanager
def show_steps(stage: StageName, subject: str) -> Iterator[None]:
    """Show the steps reported in the block; the last line stays, at 100 % if the block succeeded."""
    artifact = ProgressArtifact(stage, subject)
    last = ""

    def show(share: float, line: str) -> None:
        nonlocal last
        last = line
        artifact.show(100 * share, line)

    follow_steps(show)
    try:
        yield
    finally:
        follow_steps(None)
    if last:
        artifact.show(100, last)


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
