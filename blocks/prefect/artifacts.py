"""What a run shows on its Prefect server, and the recorder that shows it there.

If showing fails, neither finished work nor the fault that ended it is lost.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import cast
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.exceptions import MissingContextError, PrefectException

from blocks.host.recorder import open_recorder
from tasks.core.progress import say
from tasks.core.redaction import redacted
from tasks.core.settings import Settings
from tasks.core.stage import Artifact, Recorder
from tasks.core.verdicts import StageName


def flow_recorder() -> Recorder:
    """The recorder of stages that run in a flow. Outside a run nothing is published."""
    return open_recorder(Settings.load(), publish)


def artifact_key(stage: StageName, subject: str) -> str:
    """Stable key: `[a-z0-9-]` only, as Prefect asks."""
    return "-".join([stage, *re.findall(r"[a-z0-9]+", subject.lower())])


def publish(artifact: Artifact) -> None:
    """Publish a stage's artifact under its stable key, if there is a server."""
    stage, subject = artifact.stage, artifact.subject
    where = f"Record `{artifact.record}` of {subject}: `slipway kb records --stage {stage}`"

    def show() -> UUID:
        made = create_markdown_artifact(
            key=artifact_key(stage, subject),
            markdown=redacted(f"{artifact.markdown.rstrip()}\n\n---\n\n{where}\n"),
            description=redacted(artifact.description),
        )
        return cast(UUID, made)  # a coroutine only if it is awaited

    _shown(stage, show)


class ProgressArtifact:
    """The run's progress artifact. Outside a run, or without its server, there is none, and the work continues."""

    def __init__(self, stage: StageName, subject: str) -> None:
        self._stage = stage
        self._key = f"{artifact_key(stage, subject)}-progress"
        self._subject = subject
        self._id: UUID | None = None
        self._wanted = True

    def show(self, percent: float, text: str) -> None:
        """Create or update it; `percent` is from 0 to 100."""
        if not self._wanted:
            return
        self._id = _shown(self._stage, lambda: self._put(percent, f"{self._subject}: {text}"))
        self._wanted = self._id is not None

    def _put(self, percent: float, description: str) -> UUID:
        if self._id is None:
            return cast(UUID, create_progress_artifact(percent, self._key, description))
        return cast(UUID, update_progress_artifact(self._id, percent, description))


def _shown(stage: StageName, show: Callable[[], UUID]) -> UUID | None:
    """The id of the artifact that `show` creates or updates; None without one.

    There is none outside a run, or if the server fails, which is reported.
    """
    try:
        get_run_logger()
    except MissingContextError:
        return None
    try:
        return show()
    except (PrefectException, httpx.HTTPError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        say(stage, f"Prefect's server did not accept the artifact: {reason}")
        return None
