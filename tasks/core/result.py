"""What every stage's result and report have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeVar

from tasks.core.frozen import Frozen
from tasks.core.records import Number


class StageResult(Frozen):
    """A stage's answer: a verdict (`verdicts.py`) and the reasons for it. Subclasses narrow `verdict`."""

    verdict: str
    log_tail: str | None = None
    """The last lines of the engine's log, if they say why."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reasons for the verdict, one per line: more than the headline has room for."""
        return ()


T = TypeVar("T", bound=StageResult, contravariant=True)


class Report(Protocol[T]):
    """A stage's `report` module: pure functions of its result."""

    def headline(self, result: T, /) -> str:
        """The key number in a few words, for the table of stages."""

    def numbers(self, result: T, /) -> Mapping[str, Number]:
        """Figures for the record."""

    def markdown(self, result: T, /) -> str:
        """The artifact."""
