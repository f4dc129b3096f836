"""How far a copy is: a line every other second, and a progress artifact of the run."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextvars import copy_context
from typing import cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from flows.artifacts import shown
from flows.recording import artifact_key
from tasks.core.progress import Meter, Progress, meter, say
from tasks.core.verdicts import StageName

PERIOD_S = 1.0
"""Between two updates of the artifact: each is a request to the server."""

_LINES_EVERY = 2


@contextlib.contextmanager
def show_copy(stage: StageName, subject: str, total_bytes: int) -> Iterator[None]:
    """Show what `advance` counts in the block, from a thread of its own; of less than a second, nothing."""
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
    artifact = _Artifact(stage, f"{artifact_key(stage, subject)}-progress", subject)
    looks = 0
    while not over.wait(PERIOD_S):
        progress = counted.progress()
        if not progress.done_bytes:
            continue
        if looks % _LINES_EVERY == 0:
            say(stage, str(progress))
        artifact.show(progress)
        looks += 1
    if looks:
        artifact.show(counted.progress())


class _Artifact:
    """The run's progress artifact. Outside a run, or without its server, there is none: the copy goes on."""

    def __init__(self, stage: StageName, key: str, subject: str) -> None:
        self._stage = stage
        self._key = key
        self._subject = subject
        self._id: UUID | None = None
        self._wanted = True

    def show(self, progress: Progress) -> None:
        """Create it, or bring it up to date."""
        if not self._wanted:
            return
        self._id = shown(self._stage, lambda: self._put(progress))
        self._wanted = self._id is not None

    def _put(self, progress: Progress) -> UUID:
        description = f"{self._subject}: {progress}"
        if self._id is None:
            return cast(UUID, create_progress_artifact(progress.percent, self._key, description))
        return cast(UUID, update_progress_artifact(self._id, progress.percent, description))
