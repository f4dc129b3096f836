"""Which wishes of a spec an engine or a task has no use for."""

from __future__ import annotations

from typing import Protocol

from packaging.version import Version

from tasks.core.errors import SpecError
from tasks.core.model_task import Purpose, Task
from tasks.core.spec_kinds import EngineKind, LoadGenerator
from tasks.core.spec_sections import Objectives, Serving, Tuning
from tasks.engines.catalogue import get_engine


class Wishes(Protocol):
    """The sections of a spec, or of a request to tune, that a task has a say in."""

    @property
    def engine(self) -> EngineKind: ...

    @property
    def tuning(self) -> Tuning: ...

    @property
    def objectives(self) -> Objectives: ...

    @property
    def serving(self) -> Serving: ...


def check_task(wishes: Wishes, purpose: Purpose, version: str | None = None) -> None:
    """What cannot be asked of an engine, in that release of it if one is chosen, or of a model for that task. Raises
    `SpecError`."""
    task, kind = purpose.task, wishes.engine
    able = [
        one for one in EngineKind if task in get_engine(one).card.tasks and not get_engine(one).card.missing
    ]
    if task not in get_engine(kind).card.tasks:
        raise SpecError(
            f"{kind} does not serve models for {task}: {purpose.why}", fix=f"use engine: {' or '.join(able)}"
        )
    generates = task is Task.GENERATE
    first = get_engine(kind).card.tasks_from
    if not generates and version and first and Version(version) < Version(first):
        raise SpecError(
            f"Slipway serves models for {task} with {kind} from release {first} on, and engine_version is {version}",
            fix=f"set engine_version to {first} or later, or leave it out",
        )
    objectives, tuning = wishes.objectives, wishes.tuning
    given = {
        "objectives.ttft_ms": objectives.ttft_ms is not None and not generates,
        "objectives.tpot_ms": objectives.tpot_ms is not None and not generates,
        "objectives.latency_ms": objectives.latency_ms is not None and generates,
        **{
            f"serving.{key}": getattr(wishes.serving, key) is not None and not generates
            for key in ("chat_template", "tool_parser", "reasoning_parser", "structured_output")
        },
        "tuning.task_set": tuning.task_set is not None and not generates,
        "tuning.load_generator: guidellm": tuning.load_generator is LoadGenerator.GUIDELLM and not generates,
    }
    if wrong := next((key for key, unfit in given.items() if unfit), None):
        other = "objectives.ttft_ms and tpot_ms" if generates else "objectives.latency_ms"
        raise SpecError(
            f"{wrong} is not for a model for {task}: {purpose.why}",
            fix=f"use {other}" if wrong.startswith("objectives") else f"leave {wrong.partition(':')[0]} out",
        )
