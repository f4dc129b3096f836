"""Records in a folder, or on S3 (`s3.py`): one immutable JSON object each, `<stage>/<id>-<inputs>.json`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tasks.core.errors import NotFoundError, RecordError
from tasks.core.files import create_exclusively
from tasks.core.progress import say
from tasks.core.records import Record, RecordStore, newest_id, parse_record
from tasks.core.settings import Settings
from tasks.core.sources import S3
from tasks.core.verdicts import StageName


class FolderRecordStore(RecordStore):
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

    def paths(self, stage: StageName | None, suffix: str) -> Sequence[str]:
        """Of all records, of one stage if given, that end with `suffix`; oldest first."""
        found = self.root.glob(f"{stage or '*'}/*{suffix}")
        return list(map(str, sorted(found, key=lambda path: path.name)))

    def contents(self, paths: Sequence[str]) -> Iterator[tuple[bytes, str]]:
        """What is there, with its name. An object that cannot be read is reported and skipped."""
        for path in paths:
            try:
                yield Path(path).read_bytes(), path
            except OSError as error:  # of one object: if the whole store cannot be read, writing will fail
                say("knowledge", f"skipped: {path} cannot be read: {error.strerror}")


def open_record_store(settings: Settings) -> RecordStore:
    """The store that `SLIPWAY_RECORDS` names."""
    if settings.records.startswith(S3):
        from blocks.storage.s3 import S3RecordStore

        return S3RecordStore.open(settings.records, endpoint=settings.s3_endpoint)
    root = Path(settings.records)
    return FolderRecordStore(root, private=root.resolve().is_relative_to(settings.home))
