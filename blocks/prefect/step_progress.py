"""How far a search by measuring is: a progress artifact of the run, brought up to date by each step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from blocks.prefect.artifacts import ProgressArtifact
from tasks.core.progress import follow_steps
from tasks.core.verdicts import StageName


@contextlib.contextmanager
def show_steps(stage: StageName, subject: str) -> Iterator[None]:
    """Show what `step` tells in the block; the last line stays, at 100 % once the block has ended well."""
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
