"""Progress of a search by measuring: an artifact of the run, updated by each step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from blocks.prefect.artifacts import ProgressArtifact
from tasks.core.progress import follow_steps
from tasks.core.verdicts import StageName


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
