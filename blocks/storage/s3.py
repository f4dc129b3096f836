"""Objects on S3 or anything that speaks it, and the records kept there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from botocore.exceptions import ClientError

from blocks.processes.deadline import within
from blocks.storage.ranges import SIGNED_FOR_S, RangeReader, condition_on, quoted
from blocks.storage.s3_client import PARALLEL, BucketRegion, s3_client
from blocks.storage.s3_errors import (
    CONFLICT,
    MISSING,
    ExistsError,
    S3Answers,
    code_of,
    explained,
    no_ranges,
    no_s3,
)
from tasks.core.errors import (
    DeadlineError,
    ModelError,
    NetworkError,
    NotFoundError,
    RecordError,
    WrongUseError,
)
from tasks.core.paths import shown
from tasks.core.records import Record, RecordStore, newest_id, parse_record
from tasks.core.verdicts import StageName
from tasks.staging.source import changed

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ObjectTypeDef

_READ_ATTEMPTS = 4
_DEADLINE_S = 180.0
"""Limit for one request with all its retries, s."""

_MOST_BYTES = 64 << 20
"""Limit for an object that is read at once: records and small texts."""

T = TypeVar("T")


@dataclass(frozen=True)
class S3Object:
    """One object: its path below the folder, size in bytes and a name for the state of its bytes.

    That is its ETag; if the server lists none, or only a weak one, the ETag with the time of the last change.
    """

    path: str
    size_bytes: int
    etag: str


class S3Folder:
    """The objects of one bucket below one prefix. Paths are relative to it."""

    def __init__(self, client: S3Client, bucket: str, prefix: str, endpoint: str | None = None) -> None:
        self.client = client
        self.bucket = bucket
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._endpoint = endpoint
        self._home = BucketRegion(client)
        self._signer: S3Client | None = None
        self._conditional = True

    @classmethod
    def open(cls, url: str, *, endpoint: str | None) -> S3Folder:
        """The folder that `s3://BUCKET/PREFIX` names. Does not check whether it exists."""
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not url.startswith("s3://") or not bucket:
            raise WrongUseError(f"{url!r} does not name a bucket", fix="write s3://BUCKET/PREFIX")
        return cls(s3_client(endpoint), bucket, prefix, endpoint)

    def url(self, path: str = "") -> str:
        """Address of the folder, or of an object in it."""
        return f"s3://{self.bucket}/{self.prefix}{path}".rstrip("/")

    def objects(self, below: str = "", *, deep: bool = True) -> Sequence[S3Object]:
        """Objects below the folder, or below a folder in it, by path; one level only unless `deep`.

        Raises `NotFoundError` if the bucket does not exist.
        """
        found, _ = self._listing(below, "" if deep else "/")
        return found

    def names(self, below: str = "") -> Sequence[str]:
        """Names one level below a folder, of objects and folders alike; empty if the folder does not exist."""
        start = f"{below.strip('/')}/" if below.strip("/") else ""
        found, folders = self._listing(start, "/")
        return sorted({path[len(start) :].rstrip("/") for path in (*(o.path for o in found), *folders)})

    def names_after(self, below: str, name: str) -> Sequence[str]:
        """Names of objects directly in a folder that sort after `name`."""
        found, _ = self._listing(below, "/", start_after=name)
        return [item.path[len(below) :] for item in found]

    def _listing(self, below: str, delimiter: str, start_after: str = "") -> tuple[list[S3Object], list[str]]:
        """Objects and, with a delimiter, folders, both relative to this folder."""
        found: list[S3Object] = []
        folders: list[str] = []
        skip = len(self.prefix)
        after: dict[str, Any] = {"StartAfter": f"{self.prefix}{below}{start_after}"} if start_after else {}
        with explained(self.url(below)):
            pages = iter(
                self.client.get_paginator("list_objects_v2").paginate(
                    Bucket=self.bucket, Prefix=f"{self.prefix}{below}", Delimiter=delimiter, **after
                )
            )
        while (page := self._ask(below, partial(next, pages, None))) is not None:
            if "IsTruncated" not in page:
                raise no_s3(self.url(below))
            folders += [item["Prefix"][skip:] for item in page.get("CommonPrefixes", [])]
            found += [
                self._object(item, below) for item in page.get("Contents", []) if item["Key"][-1:] != "/"
            ]
        return sorted(found, key=lambda item: item.path), folders

    def _ask(self, path: str, call: Callable[[], T]) -> T:
        """Calls to boto3, bounded in time, with its errors as Slipway's."""
        with explained(self.url(path)):
            return within(_DEADLINE_S, self.url(path), call)

    def _object(self, item: ObjectTypeDef, below: str) -> S3Object:
        key = item["Key"]
        if not key.startswith(self.prefix + below):
            raise NetworkError(
                f"{self.url(below)} lists {shown(key)}, which is not below it: this is not an S3 server",
                fix="check SLIPWAY_S3_ENDPOINT",
            )
        return S3Object(key[len(self.prefix) :], item["Size"], _identity(item))

    def exists(self, path: str) -> bool:
        """Whether the object exists."""
        key = f"{self.prefix}{path}"
        try:
            self._ask(path, lambda: self.client.head_object(Bucket=self.bucket, Key=key))
        except NotFoundError:
            return False
        return True

    def read(self, path: str) -> bytes:
        """The content of a small object. Raises `NotFoundError`, or `ModelError` if it is too large."""
        key = f"{self.prefix}{path}"

        def call() -> bytes:
            return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read(_MOST_BYTES + 1)

        content = self._ask(path, call)
        if len(content) > _MOST_BYTES:
            raise ModelError(
                f"{self.url(path)} has more than {_MOST_BYTES} bytes, the limit", fix="find out what wrote it"
            )
        return content

    def read_range(self, path: str, etag: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes of that version of the object; retried when the connection breaks.

        Raises `ModelError` if the object is no longer the one that was listed.
        """
        for attempt in range(1, _READ_ATTEMPTS + 1):
            try:
                return self._ask(path, lambda: self._read_range(path, etag, offset, length))
            except DeadlineError:
                raise
            except NetworkError:
                if attempt == _READ_ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    def _read_range(self, path: str, etag: str, offset: int, length: int) -> bytes:
        condition = condition_on(etag) if self._conditional else None
        asked: dict[str, Any] = {"IfMatch": condition} if condition else {}
        try:
            answer = self.client.get_object(
                Bucket=self.bucket,
                Key=f"{self.prefix}{path}",
                Range=f"bytes={offset}-{offset + length - 1}",
                **asked,
            )
        except ClientError as error:
            code = code_of(error)
            if code in CONFLICT | MISSING:
                raise changed(self.url(path)) from error
            if condition and code in _NO_CONDITIONS:
                self._conditional = False
                return self._read_range(path, etag, offset, length)
            raise
        if condition_on(etag) and quoted(answer.get("ETag", etag)) != etag:
            raise changed(self.url(path))
        if "ContentRange" not in answer and answer["ContentLength"] > length:
            answer["Body"].close()
            raise no_ranges(self.url(path))
        return answer["Body"].read()

    def ranges(self) -> RangeReader:
        """A reader of long ranges, without boto3."""
        return RangeReader(self._sign, self.url, S3Answers())

    def _sign(self, path: str) -> str:
        with explained(self.url(path)):
            return self._signing_client().generate_presigned_url(
                "get_object",
                Params={"Bucket": self.bucket, "Key": f"{self.prefix}{path}"},
                ExpiresIn=SIGNED_FOR_S,
            )

    def _signing_client(self) -> S3Client:
        """A client for the bucket's region, if the server has named another one."""
        region = self._home.region
        if region is None or region == self.client.meta.region_name:
            return self.client
        if self._signer is None:
            self._signer = s3_client(self._endpoint, region)
        return self._signer

    def create(self, path: str, content: bytes) -> bool:
        """Create an object unless it exists; whether it was created.

        On Amazon's S3 exactly one of several writers succeeds. OpenStack Swift checks, then writes, so
        several concurrent writers may succeed: give each object a unique name.
        """
        key = f"{self.prefix}{path}"

        def call() -> object:
            return self.client.put_object(Bucket=self.bucket, Key=key, Body=content, IfNoneMatch="*")

        try:
            self._ask(path, call)
        except ExistsError:
            return False
        return True


_NO_CONDITIONS = {"NotImplemented", "501"}


def _identity(item: ObjectTypeDef) -> str:
    tag = quoted(item.get("ETag", ""))
    if condition_on(tag):
        return tag
    changed = item.get("LastModified")
    return f"{tag} changed {changed.isoformat() if changed else 'never'}".strip()


class S3RecordStore(RecordStore):
    """Records below one prefix. Ids sort by the order of writing."""

    def __init__(self, folder: S3Folder) -> None:
        self.folder = folder

    @classmethod
    def open(cls, url: str, *, endpoint: str | None) -> S3RecordStore:
        """The store at `s3://BUCKET/PREFIX`."""
        return cls(S3Folder.open(url, endpoint=endpoint))

    def put(self, record: Record) -> None:
        """Store a new record. Raises `RecordError` if its id is taken."""
        path, content = record.path, record.to_json().encode()
        # If an answer was lost, boto3 repeats the request, which then finds the object that it created itself.
        if not self.folder.create(path, content) and self.folder.read(path) != content:
            raise RecordError(f"the record {record.id} exists already")

    def get(self, record_id: str) -> Record:
        """The record of that id. Raises `NotFoundError`."""
        for stage in StageName:
            for item in self.folder.objects(f"{stage}/{record_id}-"):
                return parse_record(self.folder.read(item.path), self.folder.url(item.path))
        raise NotFoundError(
            f"no record {record_id} in {self.folder.url()}", fix="list them: slipway kb records"
        )

    def newest_after(self, record_id: str) -> str | None:
        """The greatest id above this one; None without any. One short listing for each stage."""
        with ThreadPoolExecutor(PARALLEL) as pool:
            names = pool.map(lambda stage: self.folder.names_after(f"{stage}/", record_id), StageName)
            return newest_id(itertools.chain.from_iterable(names), record_id)

    def paths(self, stage: StageName | None, suffix: str) -> Sequence[str]:
        """Of all records, of one stage if given, that end with `suffix`; oldest first."""
        below = f"{stage}/" if stage else ""
        found = [item.path for item in self.folder.objects(below) if item.path.endswith(suffix)]
        return sorted(found, key=lambda path: path.rpartition("/")[2])

    def contents(self, paths: Sequence[str]) -> Iterator[tuple[bytes, str]]:
        """What is there, with its address; several are read at once."""
        with ThreadPoolExecutor(PARALLEL) as pool:
            yield from zip(pool.map(self.folder.read, paths), map(self.folder.url, paths), strict=True)
