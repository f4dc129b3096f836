"""Records: results, written once and never changed. They are the knowledge base and the cache (docs/design.md)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ulid import ULID

from tasks.core.digests import digest_of, short
from tasks.core.errors import RecordError
from tasks.core.frozen import Frozen, first_wrong
from tasks.core.progress import say
from tasks.core.redaction import redacted_value
from tasks.core.verdicts import CANCELLED, FAULT, StageName, says_no

SCHEMA: Literal["slipway.record/1"] = "slipway.record/1"

NumberKind = Literal["measured", "predicted", "prior"]


FOREIGN_LOAD = "foreign_load"
"""The figure for the share of the CPUs that other processes used during the measurement."""


_READ_BACK = ("inputs", "result")
"""Evidence that Slipway reads back: text that only looks like a secret must stay, because it may be a path."""


class Number(Frozen):
    """One figure with its unit and where it comes from."""

    value: float
    unit: str
    kind: NumberKind = "measured"


class Record(BaseModel):
    """One result of one stage. Immutable; fields of another version are ignored.

    `outcome` is the stage's verdict, or `fault` or `cancelled`. `inputs_digest` names everything that decided
    the result. `evidence["result"]` contains the stage's typed result, so that a good record can be used instead
    of doing the work. `consulted` are ids of records that the decision used.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_: Literal["slipway.record/1"] = Field(default=SCHEMA, alias="schema")
    id: str
    at: datetime
    stage: StageName
    subject: str
    host_fingerprint: str
    inputs_digest: str
    outcome: str
    seconds: float = Field(ge=0)
    numbers: dict[str, Number] = {}
    evidence: dict[str, Any] = {}
    consulted: tuple[str, ...] = ()

    @property
    def answered(self) -> bool:
        """Whether the stage came to an answer."""
        return self.outcome not in (FAULT, CANCELLED)

    @property
    def good(self) -> bool:
        """Whether the stage answered, and did not say no."""
        return self.answered and not says_no(self.stage, self.outcome)

    @property
    def path(self) -> str:
        """The record's path in a store. The id comes first, so that names sort by time; the inputs' digest shows,
        without reading the record, whether it can be used for a stage."""
        return f"{self.stage}/{self.id}{inputs_suffix(self.inputs_digest)}"

    def to_json(self) -> str:
        """The stored form."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"


class RecordStore(Protocol):
    """Where records live: append and read, never change.

    An object that is not a record, or from another version of Slipway, is reported (`progress.say`) and skipped: one
    damaged object must not stop every stage that looks for an earlier result.
    """

    def put(self, record: Record) -> None:
        """Store a new record. Raises `RecordError` if its id is taken."""

    def get(self, record_id: str) -> Record:
        """The record of that id. Raises `NotFoundError`, or `RecordError` for one that cannot be read."""

    def newest_after(self, record_id: str) -> str | None:
        """The greatest id of a record in the store that sorts after this one; None without any."""

    def paths(self, stage: StageName | None, suffix: str) -> Sequence[str]:
        """Paths of the records, of one stage if given, that end with `suffix`; oldest first."""

    def contents(self, paths: Sequence[str]) -> Iterator[tuple[bytes, str]]:
        """What is stored there, each with a name for messages."""

    def with_inputs(
        self, stage: StageName, inputs_digest: str, newest: int | None = None
    ) -> Sequence[Record]:
        """A stage's records with these inputs, oldest first; others are not read. At most the `newest` many."""
        return self._read(self.paths(stage, inputs_suffix(inputs_digest))[-newest if newest else None :])

    def latest(self, stage: StageName, subject: str) -> Record | None:
        """The stage's newest record of that subject that came to an answer. Older ones are not read."""
        newest_first = self.paths(stage, _SUFFIX)[::-1]
        records = (record for path in newest_first for record in read_each(self.contents([path])))
        return next((one for one in records if one.subject == subject and one.answered), None)

    def list(self, stage: StageName | None = None) -> Sequence[Record]:
        """All records, of one stage if given, oldest first."""
        return self._read(self.paths(stage, _SUFFIX))

    def _read(self, paths: Sequence[str]) -> Sequence[Record]:
        return [*read_each(self.contents(paths))]


_SUFFIX = ".json"


def inputs_suffix(inputs_digest: str) -> str:
    """End of the object name of a record with these inputs."""
    return f"-{short(inputs_digest)}{_SUFFIX}"


def inputs_digest(stage: StageName, inputs: Mapping[str, Any], consulted: Sequence[str] = ()) -> str:
    """Digest of everything that decides a stage's result."""
    return digest_of({"stage": stage, "inputs": dict(inputs), "consulted": sorted(consulted)})


def next_id(store: RecordStore) -> str:
    """An id that sorts after all others in the store, whatever the clocks of this and other hosts say.

    The order of ids is the order of writing: a clock that was set back must not put new records before old ones.
    """
    made = ULID()
    newest = store.newest_after(str(made))
    if newest is None:
        return str(made)
    return str(ULID.from_timestamp(ULID.from_str(newest).milliseconds + 1))


def newest_id(names: Iterable[str], than: str) -> str | None:
    """The greatest id at the start of these object names, if it is greater than `than`."""
    ids = (name[: len(than)] for name in names if name[: len(than)] > than)
    return max(filter(_is_id, ids), default=None)


def _is_id(text: str) -> bool:
    """Whether it is a valid id with a successor."""
    try:
        ULID.from_timestamp(ULID.from_str(text).milliseconds + 1)
    except ValueError:
        return False
    return True


def new_record(
    *,
    stage: StageName,
    subject: str,
    host_fingerprint: str,
    inputs_digest: str,
    outcome: str,
    seconds: float,
    numbers: Mapping[str, Number] | None = None,
    evidence: Mapping[str, Any] | None = None,
    consulted: Sequence[str] = (),
    store: RecordStore | None = None,
) -> Record:
    """A new record, with secrets redacted. Its id sorts after all those in the `store` that it is made for."""
    return Record(
        id=next_id(store) if store else str(ULID()),
        at=datetime.now(UTC),
        stage=stage,
        subject=subject,
        host_fingerprint=host_fingerprint,
        inputs_digest=inputs_digest,
        outcome=outcome,
        seconds=seconds,
        numbers=dict(numbers or {}),
        evidence={
            key: redacted_value(value, by_look=key not in _READ_BACK)
            for key, value in (evidence or {}).items()
        },
        consulted=tuple(consulted),
    )


def read_each(documents: Iterable[tuple[bytes, str]]) -> Iterator[Record]:
    """Parse documents, given with their names; anything that is not a record is reported and skipped."""
    for content, name in documents:
        try:
            yield parse_record(content, name)
        except RecordError as error:
            say("knowledge", f"skipped: {error.what}")


def parse_record(content: bytes, name: str) -> Record:
    """The record in `content`. Raises `RecordError` that names the object."""
    try:
        return Record.model_validate_json(content)
    except ValidationError as error:
        raise RecordError(
            f"{name} is not a record: {first_wrong(error)}", fix="move it away, or upgrade Slipway"
        ) from None


def load_words(numbers: Mapping[str, Number], busy_share: float) -> str:
    """`, under foreign load (…)` if others used more than `busy_share` of the CPUs; else empty."""
    load = numbers.get(FOREIGN_LOAD)
    if load is None or load.value <= busy_share:
        return ""
    return f", under foreign load ({load.value:.0%} of the CPUs)"


def standing(
    records: Sequence[Record], *, inputs_digest: str, host_fingerprint: str | None = None
) -> Record | None:
    """The record to use instead of doing the work with these inputs; on this host if a fingerprint is given.

    The newest answer decides: if it says no, an older one that said yes no longer counts. Runs that ended without an
    answer (`fault`, `cancelled`) are skipped, so that a network failure does not discard measurements.
    """
    for record in sorted(records, key=lambda record: record.id, reverse=True):
        if record.inputs_digest != inputs_digest or not record.answered:
            continue
        if host_fingerprint is None or record.host_fingerprint == host_fingerprint:
            return record if record.good else None
    return None
