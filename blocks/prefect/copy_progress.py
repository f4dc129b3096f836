"""Progress of a copy: a line every other second, and an artifact of the run."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextvars import copy_context

from blocks.prefect.artifacts import ProgressArtifact
from tasks.core.progress import Meter, meter, say
from tasks.core.verdicts import StageName

PERIOD_S = 1.0
"""Between two updates of the artifact: each is a request to the server."""

_LINES_EVERY = 2


@contextlib.contextmanager
def show_copy(stage: StageName, subject: str, total_bytes: int) -> Iterator[None]:
    """Show what `advance` counts in the block, from a separate thread; nothing for less than a second."""
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
