"""A stage whose work is to count how often it was done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from blocks.host.recorder import open_recorder
from blocks.storage.record_store import open_record_store
from tasks.core.records import Number, Record
from tasks.core.result import StageResult
from tasks.core.settings import Settings
from tasks.core.stage import Artifact, Outcome, Recorder, publish_nowhere, run_stage
from tasks.core.verdicts import StageName


class Answer(StageResult):
    """Stands for a stage's result."""

    value: int = 0


class AnswerReport:
    """Stands for a stage's report module."""

    def headline(self, result: Answer, /) -> str:
        return f"value {result.value}"

    def numbers(self, result: Answer, /) -> dict[str, Number]:
        return {"value": Number(value=result.value, unit="1")}

    def markdown(self, result: Answer, /) -> str:
        return f"# answer {result.value}"


REPORT = AnswerReport()


class Work:
    """Counts how often it was done."""

    def __init__(self, verdict: str = "verified") -> None:
        self.verdict = verdict
        self.times = 0

    def __call__(self) -> Answer:
        self.times += 1
        return Answer(verdict=self.verdict, value=self.times)


def recorder(publish: Callable[[Artifact], None] = publish_nowhere) -> Recorder:
    return open_recorder(Settings.load(), publish)


def stage(
    work: Any,
    *,
    publish: Callable[[Artifact], None] = publish_nowhere,
    still_good: Any = lambda result: True,
    **changes: Any,
) -> Outcome[Answer]:
    settings: dict[str, Any] = {"subject": "tiny", "inputs": {"source": "a"}, "report": REPORT, **changes}
    return run_stage(
        recorder(publish),
        StageName.STAGING,
        result_type=Answer,
        work=work,
        still_good=still_good,
        **settings,
    )


def records() -> list[Record]:
    return list(open_record_store(Settings.load()).list())
