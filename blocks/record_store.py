"""Records in a folder, or on S3 (`blocks/s3.py`): one immutable JSON object each, `<stage>/<id>-<inputs>.json`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from tasks.core.errors import NotFoundError, RecordError
from tasks.core.files import create_exclusively
from tasks.core.progress import say
from tasks.core.records import Record, RecordStore, inputs_suffix
from tasks.core.settings import Settings
from tasks.core.verdicts import StageName


class FolderRecordStore:
    """Records below one folder. Ids sort by time, so names do too."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, record: Record) -> None:
        """Store a new record. Raises `RecordError` if its id is taken."""
        if not create_exclusively(self.root / record.path, record.to_json()):
            raise RecordError(f"the record {record.id} exists already")

    def get(self, record_id: str) -> Record:
        """The record of that id. Raises `NotFoundError`."""
        for path in self.root.glob(f"*/{record_id}-*.json"):
            return parse_record(path.read_bytes(), str(path))
        raise NotFoundError(f"no record {record_id} in {self.root}", fix="list them: slipway kb records")

    def list(self, stage: StageName | None = None) -> Sequence[Record]:
        """All records, of one stage if given, oldest first."""
        return self._read(f"{stage or '*'}/*.json")

    def with_inputs(self, stage: StageName, inputs_digest: str) -> Sequence[Record]:
        """A stage's records with these inputs, oldest first; others are not read."""
        return self._read(f"{stage}/*{inputs_suffix(inputs_digest)}")

    def _read(self, pattern: str) -> Sequence[Record]:
        paths = sorted(self.root.glob(pattern), key=lambda path: path.name)
        return read_all((path.read_bytes(), str(path)) for path in paths)


def read_all(documents: Iterable[tuple[bytes, str]]) -> Sequence[Record]:
    """Parse documents given with their names; what is no record is told of and left out."""
    found = []
    for content, name in documents:
        try:
            found.append(parse_record(content, name))
        except RecordError as error:
            say("knowledge", f"left out: {error.what}")
    return found


def parse_record(content: bytes, name: str) -> Record:
    """The record in `content`. Raises `RecordError` that names the object."""
    try:
        return Record.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(piece) for piece in first["loc"])
        raise RecordError(
            f"{name} is not a record: {where}: {first['msg']}", fix="move it away, or upgrade Slipway"
        ) from None


def open_record_store(settings: Settings) -> RecordStore:
    """The store that `SLIPWAY_RECORDS` names."""
    if settings.records.startswith("s3://"):
        from blocks.s3 import S3RecordStore

        return S3RecordStore.open(settings.records, endpoint=settings.s3_endpoint)
    return FolderRecordStore(Path(settings.records))
