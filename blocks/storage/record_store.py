"""Records in a folder, or on S3 (`s3.py`): one immutable JSON object each, `<stage>/<id>-<inputs>.json`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tasks.core.errors import NotFoundError, RecordError
from tasks.core.files import create_exclusively
from tasks.core.progress import say
from tasks.core.records import (
    Record,
    RecordStore,
    first_answered,
    inputs_suffix,
    newest_id,
    parse_record,
    read_each,
)
from tasks.core.settings import Settings
from tasks.core.sources import S3
from tasks.core.verdicts import StageName


class FolderRecordStore:
    """Records below one folder. Ids sort by the order of writing, so names do too.

    A folder that several users or hosts share is not `private`.
    """

    def __init__(self, root: Path, *, private: bool = True) -> None:
        self.root = root
        self._private = private

    def put(self, record: Record) -> None:
        """Store a new record. Raises `RecordError` if its id is taken."""
        if not create_exclusively(self.root / record.path, record.to_json(), private=self._private):
            raise RecordError(f"the record {record.id} exists already")

    def get(self, record_id: str) -> Record:
        """The record of that id. Raises `NotFoundError`."""
        for path in self.root.glob(f"*/{record_id}-*.json"):
            return parse_record(path.read_bytes(), str(path))
        raise NotFoundError(f"no record {record_id} in {self.root}", fix="list them: slipway kb records")

    def newest_after(self, record_id: str) -> str | None:
        """The greatest id above this one; None without any."""
        return newest_id((path.name for path in self.root.glob("*/*.json")), record_id)

    def latest(self, stage: StageName, subject: str) -> Record | None:
        """The stage's newest record of that subject that came to an answer. Older ones are not read."""
        return first_answered(read_each(_contents(self._paths(f"{stage}/*.json")[::-1])), subject)

    def list(self, stage: StageName | None = None) -> Sequence[Record]:
        """All records, of one stage if given, oldest first."""
        return self._read(f"{stage or '*'}/*.json")

    def with_inputs(
        self, stage: StageName, inputs_digest: str, newest: int | None = None
    ) -> Sequence[Record]:
        """A stage's records with these inputs, oldest first; others are not read. At most the `newest` many."""
        return self._read(f"{stage}/*{inputs_suffix(inputs_digest)}", newest)

    def _read(self, pattern: str, newest: int | None = None) -> Sequence[Record]:
        return list(read_each(_contents(self._paths(pattern)[-newest if newest else None :])))

    def _paths(self, pattern: str) -> Sequence[Path]:
        return sorted(self.root.glob(pattern), key=lambda path: path.name)


def _contents(paths: Sequence[Path]) -> Iterator[tuple[bytes, str]]:
    for path in paths:
        try:
            yield path.read_bytes(), str(path)
        except OSError as error:  # of one object: if the whole store cannot be read, writing will fail
            say("knowledge", f"skipped: {path} cannot be read: {error.strerror}")


def open_record_store(settings: Settings) -> RecordStore:
    """The store that `SLIPWAY_RECORDS` names."""
    if settings.records.startswith(S3):
        from blocks.storage.s3 import S3RecordStore

        return S3RecordStore.open(settings.records, endpoint=settings.s3_endpoint)
    root = Path(settings.records)
    return FolderRecordStore(root, private=root.resolve().is_relative_to(settings.home))
