"""One way to run a stage: use a good record, or do the work, record and publish it.

The record is the cache: a stage whose inputs' digest has a good record, and whose outputs still verify, is not done
again. A `Recorder` provides everything outside the process: store, host, artifacts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.core.disk_faults import unforeseen_fault
from tasks.core.errors import SlipwayError, StageCancelledError
from tasks.core.freshness import is_fresh
from tasks.core.progress import say
from tasks.core.records import (
    FOREIGN_LOAD,
    Number,
    Record,
    RecordStore,
    inputs_digest,
    load_words,
    new_record,
    standing,
)
from tasks.core.redaction import redacted, redacted_value
from tasks.core.result import Report, StageResult
from tasks.core.settings import Settings
from tasks.core.verdicts import CANCELLED, FAULT, StageName, says_no

R = TypeVar("R", bound=StageResult)


@dataclass(frozen=True)
class Artifact:
    """What a stage shows of its record. `description` is its line in a list."""

    stage: StageName
    subject: str
    markdown: str
    record: str
    description: str


def publish_nowhere(artifact: Artifact) -> None:
    """The publisher of a command without a server, which only shows its output."""


@dataclass(frozen=True)
class Recorder:
    """Where stages of this host are recorded, and how their results are shown."""

    settings: Settings
    store: RecordStore
    host_fingerprint: str
    publish: Callable[[Artifact], None] = publish_nowhere


class Load(Protocol):
    """Other load of the host: its share of the CPUs, from 0 to 1."""

    share: float | None
    """During the work; None if it was not measured."""

    def now(self) -> float:
        """The current share."""


class Outcome(BaseModel, Generic[R]):
    """What one stage did in one run. `record` is the id of the record with the result."""

    model_config = ConfigDict(frozen=True)

    stage: StageName
    verdict: str
    cached: bool
    seconds: float
    record: str
    headline: str
    result: R

    @property
    def says_no(self) -> bool:
        """Whether the verdict ends the lifecycle."""
        return says_no(self.stage, self.verdict)


def raising(error: Exception) -> Callable[[], NoReturn]:
    """The work of a stage that has already failed, to be recorded like any other."""

    def work() -> NoReturn:
        raise error

    return work


class WorkNeededError(Exception):
    """No record can be used for this stage, and the caller wanted only records."""


_records_only: ContextVar[bool] = ContextVar("slipway_records_only", default=False)


@contextmanager
def records_only() -> Iterator[None]:
    """In the block, a stage that could use a record, but has none, raises `WorkNeededError` and does nothing.

    Stages that never use a record, such as a health check, do their work as always.
    """
    token = _records_only.set(True)
    try:
        yield
    finally:
        _records_only.reset(token)


def need_work() -> None:
    """Call before work for which there is no record. Raises `WorkNeededError` if only records are wanted."""
    if _records_only.get():
        raise WorkNeededError


def run_stage(
    recorder: Recorder,
    stage: StageName,
    *,
    subject: str,
    inputs: Mapping[str, Any],
    result_type: type[R],
    report: Report[R],
    work: Callable[[], R],
    still_good: Callable[[R], bool] | None = None,
    consulted: Sequence[str] = (),
    load: Load | None = None,
    made_meanwhile: Callable[[], Sequence[str]] = tuple,
    began: float | None = None,
    by: str | None = None,
) -> Outcome[R]:
    """Do one stage's work, or use a good record instead; write the record and the artifact.

    A result is only used on hosts with the same fingerprint. A fault is recorded, then raised.

    Args:
        recorder: where records and artifacts go.
        stage: which stage.
        subject: what it works on.
        inputs: what decides the result; its digest names the records that may be used.
        result_type: type of the answer.
        report: the answer in words and figures.
        work: does the work.
        still_good: whether the outputs of a recorded result are intact; without this function no record is used.
        consulted: records that the decision uses. They are part of the inputs, so a new record means a new decision.
        load: what the work measured of the host's other load. A record that was measured on a busy host is used only
            as long as the host is busy.
        made_meanwhile: records that the work made, on which the answer or the fault depends.
        began: when the work began by the monotonic clock, if before this call.
        by: what did the work, if not a deploy; it goes into the record's evidence.
    """
    begin = time.monotonic() if began is None else began
    run = StageRun(recorder, stage, subject, inputs, consulted, made_meanwhile, begin)
    if still_good is not None:
        cached = None if is_fresh(stage) else _reuse(run, result_type, still_good, load)
        if cached is not None:
            record, result = cached
            headline = report.headline(result) + load_words(record.numbers, recorder.settings.busy_share)
            say(stage, f"cached: {headline}")
            return _outcome(run, result, record.id, headline, cached=True)
        need_work()
    with failures_recorded(run):
        result = work()
    numbers = dict(report.numbers(result))
    if load is not None and load.share is not None:
        numbers[FOREIGN_LOAD] = Number(value=load.share, unit="1")
    evidence = {"result": result.model_dump(mode="json"), **({"by": by} if by else {})}
    record = run.record(result.verdict, numbers=numbers, **evidence)
    words = load_words(numbers, recorder.settings.busy_share)
    headline = redacted(report.headline(result)) + words
    note = f"\n\nMeasured{words[1:]}: once the host is quiet, it is measured again.\n" if words else ""
    run.publish(report.markdown(result) + note, record, f"{result.verdict}: {headline}")
    say(stage, f"{result.verdict}: {headline}")
    return _outcome(run, result, record.id, headline, cached=False)


@dataclass(frozen=True)
class StageRun:
    """One run of a stage, from its inputs to its record."""

    recorder: Recorder
    stage: StageName
    subject: str
    inputs: Mapping[str, Any]
    consulted: Sequence[str] = ()
    made_meanwhile: Callable[[], Sequence[str]] = tuple
    began: float = field(default_factory=time.monotonic)
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", inputs_digest(self.stage, self.inputs, self.consulted))

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began

    def record(self, outcome: str, *, numbers: Mapping[str, Number] | None = None, **evidence: Any) -> Record:
        """Record how it ended."""
        record = new_record(
            store=self.recorder.store,
            stage=self.stage,
            subject=self.subject,
            host_fingerprint=self.recorder.host_fingerprint,
            inputs_digest=self.digest,
            outcome=outcome,
            seconds=self.seconds,
            consulted=[*self.consulted, *self.made_meanwhile()],
            numbers=numbers,
            evidence={"inputs": dict(self.inputs), **evidence},
        )
        self.recorder.store.put(record)
        return record

    def publish(self, markdown: str, record: Record, description: str) -> None:
        """Show it."""
        self.recorder.publish(Artifact(self.stage, self.subject, markdown, record.id, description))


@contextmanager
def failures_recorded(run: StageRun) -> Iterator[None]:
    """Record any exception that ends the block, and raise it again: failures are knowledge too."""
    try:
        yield
    except WorkNeededError:  # raised by a stage inside this one: nothing was done
        raise
    except StageCancelledError as error:
        _record_failure(run, CANCELLED, error)
        raise
    except SlipwayError as error:
        _record_failure(run, FAULT, error)
        raise
    except Exception as error:
        if isinstance(error, OSError) and (fault := unforeseen_fault(error, run.recorder.settings.home)):
            _record_failure(run, FAULT, fault)
            raise fault from error
        # An unexpected error. Its text will be shown, so it must not contain secrets.
        error.args = redacted_value(error.args)
        _record_failure(run, FAULT, SlipwayError(f"{type(error).__name__}: {error}"))
        raise


def _record_failure(run: StageRun, outcome: str, error: SlipwayError) -> None:
    try:
        record = run.record(outcome, error=error.as_json())
    except (SlipwayError, OSError) as lost:
        # The fault is raised even if it cannot be recorded: it says more than a store that is down.
        say(run.stage, f"{outcome}: {error.what}; it could not be recorded: {lost}")
        return
    detail = f"\n\n```\n{error.detail}\n```" if error.detail else ""
    way_out = f"\n\nWhat to do: {error.fix}" if error.fix else ""
    markdown = f"# {run.stage.capitalize()}: {outcome}\n\n{error.what}{way_out}{detail}"
    run.publish(markdown, record, f"{outcome}: {error.what}")
    say(run.stage, f"{outcome}: {error.what}")


def _reuse(
    run: StageRun, result_type: type[R], still_good: Callable[[R], bool], load: Load | None
) -> tuple[Record, R] | None:
    """The record to use instead of the work, and its result."""
    recorder = run.recorder
    found = recorder.store.with_inputs(run.stage, run.digest)
    record = standing(found, inputs_digest=run.digest, host_fingerprint=recorder.host_fingerprint)
    if record is None:
        return None
    try:
        result = result_type.model_validate(record.evidence["result"])
    except (KeyError, ValidationError):
        return None  # written by another version: do the work again
    try:
        if not still_good(result):
            return None
    except OSError:
        return None  # the work will meet it again, and record what it raises then
    return None if _is_worth_repeating(record, load, recorder.settings) else (record, result)


def _is_worth_repeating(record: Record, load: Load | None, settings: Settings) -> bool:
    """Whether its figures were measured while other work kept the host busy, and the host is quiet now."""
    if load is None or not load_words(record.numbers, settings.busy_share):
        return False
    quiet = load.now() <= settings.busy_share
    if quiet:
        say(
            record.stage,
            f"record {record.id} was measured while the host was busy; it is quiet now: measuring again",
        )
    return quiet


def _outcome(run: StageRun, result: R, record: str, headline: str, *, cached: bool) -> Outcome[R]:
    return Outcome[R](
        stage=run.stage,
        verdict=result.verdict,
        cached=cached,
        seconds=run.seconds,
        record=record,
        headline=headline,
        result=result,
    )
