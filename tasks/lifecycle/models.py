"""A deploy's inputs and its result: a row per stage, and the service."""

from __future__ import annotations

from typing import Any, Self

from tasks.core.frozen import Frozen
from tasks.core.model_task import Task
from tasks.core.result import StageResult
from tasks.core.spec import DeploySpec
from tasks.core.stage import Outcome
from tasks.core.verdicts import LifecycleVerdict, StageName, says_no


class StageRow(Frozen):
    """One stage's line in the table. `record` is None if the stage did not finish."""

    stage: StageName
    verdict: str
    cached: bool
    seconds: float
    record: str | None
    headline: str
    log_tail: str | None = None
    reasons: tuple[str, ...] = ()
    """All reasons, in full, of a stage that said no."""

    @classmethod
    def of(cls, outcome: Outcome[Any]) -> Self:
        """The row of a stage that answered."""
        return cls(
            **outcome.model_dump(include={"stage", "verdict", "cached", "record", "headline"}),
            seconds=round(outcome.seconds, 3),
            log_tail=outcome.result.log_tail,
            reasons=outcome.result.reasons if outcome.says_no else (),
        )

    @property
    def says_no(self) -> bool:
        """Whether this stage ended the lifecycle."""
        return says_no(self.stage, self.verdict)


class DeployResult(StageResult):
    """A deploy. `endpoint`, `release` and `completion` are None if nothing new serves; `chat` says that the model
    has a chat template, `task` what it is for, `locked` that requests must carry a key."""

    verdict: LifecycleVerdict
    name: str
    model: str
    model_version: str | None = None
    endpoint: str | None = None
    release: str | None = None
    completion: str | None = None
    chat: bool = False
    task: Task = Task.GENERATE
    locked: bool = False
    stages: tuple[StageRow, ...] = ()

    @property
    def url(self) -> str:
        """Where users ask."""
        path = {Task.EMBED: "embeddings", Task.RERANK: "rerank"}.get(self.task)
        return f"{self.endpoint}/v1/{path or ('chat/completions' if self.chat else 'completions')}"

    @property
    def says_no(self) -> bool:
        """Whether a stage ended the lifecycle."""
        return says_no(StageName.LIFECYCLE, self.verdict)


def deploy_inputs(spec: DeploySpec, model_version: str | None) -> dict[str, Any]:
    """The inputs in a deploy's record. The version is None if the spec's model has none, or was not found."""
    return {"spec": spec.model_dump(mode="json"), "model_version": model_version}
