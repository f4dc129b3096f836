"""What a whole deploy did: a row per stage, and the service that came of it."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from tasks.core.records import Number
from tasks.core.result import StageResult
from tasks.core.verdicts import LifecycleVerdict, StageName, says_no


class StageRow(BaseModel):
    """One stage's line in the table. `record` is None when a stage did not run to its end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: StageName
    verdict: str
    cached: bool
    seconds: float
    record: str | None
    headline: str
    log_tail: str | None = None

    @property
    def says_no(self) -> bool:
        """Whether this stage ended the lifecycle."""
        return says_no(self.stage, self.verdict)


class DeployResult(StageResult):
    """A deploy. `endpoint`, `release` and `completion` are None where nothing new serves."""

    verdict: LifecycleVerdict
    name: str
    model: str
    model_version: str | None = None
    endpoint: str | None = None
    release: str | None = None
    completion: str | None = None
    stages: tuple[StageRow, ...] = ()


def headline(result: DeployResult) -> str:
    """Where it serves, or which stage said no."""
    if result.endpoint:
        return f"{result.name} serves at {result.endpoint}"
    no = next((row for row in result.stages if row.says_no), None)
    return f"{no.stage} says {no.verdict}: {no.headline}" if no else "nothing serves"


def numbers(result: DeployResult) -> Mapping[str, Number]:
    """Wall time of each stage."""
    return {f"{row.stage}_s": Number(value=round(row.seconds, 3), unit="s") for row in result.stages}


def markdown(result: DeployResult) -> str:
    """The artifact: the table of stages, and how to call the service."""
    rows = "\n".join(_markdown_row(row) for row in result.stages)
    table = f"| stage | verdict | time | key number | record |\n|---|---|---|---|---|\n{rows}\n"
    if result.endpoint is None:
        return f"# {result.name}: {result.verdict}\n\n{headline(result)}\n\n{table}"
    address = f"`{result.endpoint}/v1/completions`, release `{result.release}`"
    return f"# {result.name}: {result.verdict}\n\n{address}\n\n{table}\n> {result.completion}\n"


def _markdown_row(row: StageRow) -> str:
    verdict = f"cached, {row.verdict}" if row.cached else row.verdict
    record = f"`{row.record}`" if row.record else "-"
    return f"| {row.stage} | {verdict} | {row.seconds:.1f} s | {row.headline} | {record} |"
