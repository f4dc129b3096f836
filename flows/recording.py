"""What every stage has in common: look for a record that stands in for the work, else work, record, publish.

The record is the cache (docs/design.md): a stage whose inputs' digest has a good record, and whose outputs still
verify, is not done again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Self, TypeVar, cast
from uuid import UUID

from prefect.artifacts import create_markdown_artifact
from pydantic import BaseModel, ConfigDict, ValidationError

from blocks.host.host import fingerprint_here
from blocks.host.host_load import ForeignLoad
from blocks.prefect.redacted_logs import redact_logs
from blocks.storage.record_store import open_record_store
from flows.artifacts import shown
from flows.named_states import named
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

redact_logs()  # every flow imports this module, in the command as in a worker


class Outcome(BaseModel, Generic[R]):
    """What one stage did in one run. `record` is the id of the record that holds the result."""

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

    def as_state(self) -> Self:
        """The Prefect state that shows it: `Cached`, or the verdict, which is red where it says no."""
        name = "Cached" if self.cached else self.verdict.replace("_", " ").capitalize()
        return named(self, name, self.headline, says_no=self.says_no)


def run_stage(
    stage: StageName,
    *,
    subject: str,
    inputs: Mapping[str, Any],
    result_type: type[R],
    report: Report[R],
    work: Callable[[], R],
    still_good: Callable[[R], bool] | None = None,
    consulted: Sequence[str] = (),
    load: ForeignLoad | None = None,
    began: float | None = None,
    by: str | None = None,
) -> Outcome[R]:
    """Do one stage's work, or let a good record stand in for it; write the record and the artifact.

    `still_good` looks whether a recorded result's outputs are there unharmed; without it nothing is reused.
    `consulted` are records that the decision uses: their ids are part of the inputs, so new knowledge decides
    anew. `began` is when the work began by the monotonic clock, if before this call. `by` goes into the record's
    evidence: what did the work, where a deploy did not.
    A result holds on hosts with the same fingerprint only. A fault is recorded, then raised.

    `load` is what the work measured of the host's other load: a record that was made beside a busy neighbour stands
    in for the work only as long as the host is busy.
    """
    settings = Settings.load()
    store = open_record_store(settings)
    host = fingerprint_here()
    digest = inputs_digest(stage, inputs, consulted)
    start = time.monotonic() if began is None else began
    if still_good is not None and not is_fresh(stage):
        cached = _reuse(store, stage, digest, host, result_type, still_good)
        if cached is not None and _is_worth_repeating(cached[0], load, settings):
            cached = None
        if cached is not None:
            record, result = cached
            headline = report.headline(result) + load_words(record.numbers, settings.busy_share)
            say(stage, f"cached: {headline}")
            return Outcome[R](
                stage=stage,
                verdict=result.verdict,
                cached=True,
                seconds=time.monotonic() - start,
                record=record.id,
                headline=headline,
                result=result,
            )
    frame: dict[str, Any] = {
        "stage": stage,
        "subject": subject,
        "host_fingerprint": host,
        "inputs_digest": digest,
        "consulted": consulted,
    }
    try:
        result = work()
    except StageCancelledError as error:
        _record_failure(store, frame, CANCELLED, error, time.monotonic() - start)
        raise
    except SlipwayError as error:
        _record_failure(store, frame, FAULT, error, time.monotonic() - start)
        raise
    except Exception as error:
        if isinstance(error, OSError) and (fault := unforeseen_fault(error, settings.home)):
            _record_failure(store, frame, FAULT, fault, time.monotonic() - start)
            raise fault from error
        # Not explained by Slipway, recorded all the same: failures are knowledge too. It goes on up, and Prefect
        # makes its text the message of the run's state.
        error.args = redacted_value(error.args)
        _record_failure(
            store, frame, FAULT, SlipwayError(f"{type(error).__name__}: {error}"), time.monotonic() - start
        )
        raise
    seconds = time.monotonic() - start
    numbers = dict(report.numbers(result))
    if load is not None and load.share is not None:
        numbers[FOREIGN_LOAD] = Number(value=load.share, unit="1")
    record = new_record(
        **frame,
        store=store,
        outcome=result.verdict,
        seconds=seconds,
        numbers=numbers,
        evidence={
            "inputs": dict(inputs),
            "result": result.model_dump(mode="json"),
            **({"by": by} if by else {}),
        },
    )
    store.put(record)
    words = load_words(numbers, settings.busy_share)
    headline = redacted(report.headline(result)) + words
    note = f"\n\nMeasured{words[1:]}: once the host is quiet, it is measured again.\n" if words else ""
    publish(stage, subject, report.markdown(result) + note, record.id, f"{result.verdict}: {headline}")
    say(stage, f"{result.verdict}: {headline}")
    return Outcome[R](
        stage=stage,
        verdict=result.verdict,
        cached=False,
        seconds=seconds,
        record=record.id,
        headline=headline,
        result=result,
    )


def _reuse(
    store: RecordStore,
    stage: StageName,
    digest: str,
    host: str,
    result_type: type[R],
    still_good: Callable[[R], bool],
) -> tuple[Record, R] | None:
    record = standing(store.with_inputs(stage, digest), inputs_digest=digest, host_fingerprint=host)
    if record is None:
        return None
    try:
        result = result_type.model_validate(record.evidence["result"])
    except (KeyError, ValidationError):
        return None  # written by another version: do the work again
    try:
        return (record, result) if still_good(result) else None
    except OSError:
        return None  # the work meets it again, and what it raises then is recorded


def _is_worth_repeating(record: Record, load: ForeignLoad | None, settings: Settings) -> bool:
    """Whether its figures were measured beside a busy neighbour that is quiet now."""
    if load is None or not load_words(record.numbers, settings.busy_share):
        return False
    quiet = load.now() <= settings.busy_share
    if quiet:
        say(
            record.stage,
            f"record {record.id} was made under foreign load, the host is quiet now: measuring anew",
        )
    return quiet


def _record_failure(
    store: RecordStore, frame: Mapping[str, Any], outcome: str, error: SlipwayError, seconds: float
) -> None:
    evidence = {"error": error.as_json()}
    try:
        record = new_record(**frame, store=store, outcome=outcome, seconds=seconds, evidence=evidence)
        store.put(record)
    except (SlipwayError, OSError) as lost:
        # The fault goes on up whatever becomes of its record: it says more than a store that is down.
        say(frame["stage"], f"{outcome}: {error.what}; it could not be recorded: {lost}")
        return
    detail = f"\n\n```\n{error.detail}\n```" if error.detail else ""
    way_out = f"\n\nWhat to do: {error.fix}" if error.fix else ""
    publish(
        frame["stage"],
        frame["subject"],
        f"# {frame['stage'].capitalize()}: {outcome}\n\n{error.what}{way_out}{detail}",
        record.id,
        f"{outcome}: {error.what}",
    )
    say(frame["stage"], f"{outcome}: {error.what}")


def artifact_key(stage: StageName, subject: str) -> str:
    """Stable key: `[a-z0-9-]` only, as Prefect asks."""
    return "-".join([stage, *re.findall(r"[a-z0-9]+", subject.lower())])


def publish(
    stage: StageName, subject: str, markdown: str, record_id: str, description: str | None = None
) -> None:
    """Publish a stage's artifact under its stable key, where there is a server to show it.

    `description` is the line below the key in the list of artifacts.
    """
    text = f"{markdown.rstrip()}\n\n---\n\nRecord `{record_id}` of {subject}: `slipway kb records --stage {stage}`\n"

    def show() -> UUID:
        made = create_markdown_artifact(
            key=artifact_key(stage, subject),
            markdown=redacted(text),
            description=redacted(description or f"{stage} of {subject}"),
        )
        return cast(UUID, made)  # a coroutine only where it is awaited

    shown(stage, show)
