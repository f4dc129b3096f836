"""Objects on S3 or anything that speaks it, and the records kept there.

Never the CRT transfer client: it ignores a custom endpoint (boto3#4839).
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)

from blocks.s3_ranges import SIGNED_FOR_S, RangeReader
from tasks.core.errors import (
    AccessError,
    ModelError,
    NetworkError,
    NotFoundError,
    RecordError,
    SlipwayError,
    WrongUseError,
)
from tasks.core.paths import shown
from tasks.core.records import Record, inputs_suffix, newest_id, parse_record, read_all
from tasks.core.verdicts import StageName

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ObjectTypeDef

_PARALLEL = 16
_READ_ATTEMPTS = 4
_REFUSED = {"403", "401", "AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId", "ExpiredToken"}
_MISSING = {"404", "NoSuchBucket", "NoSuchKey", "NotFound"}
_CONFLICT = {"412", "PreconditionFailed"}


@dataclass(frozen=True)
class S3Object:
    """One object: its path below the folder, size in bytes and ETag."""

    path: str
    size_bytes: int
    etag: str


def s3_client(endpoint: str | None) -> S3Client:
    """A client for the S3 server at `endpoint`, Amazon's if None.

    With the address and credentials of the block that `SLIPWAY_S3_BLOCK` names, else with boto3's usual ones.
    """
    name = os.environ.get("SLIPWAY_S3_BLOCK")
    if not name:
        return _client(boto3.session.Session(), endpoint)
    from blocks.object_storage import load_storage

    storage = load_storage(name)
    session = boto3.session.Session(
        aws_access_key_id=storage.access_key,
        aws_secret_access_key=storage.secret_key.get_secret_value(),
        region_name=storage.region,
    )
    return _client(session, storage.endpoint or endpoint)


def _client(session: boto3.session.Session, endpoint: str | None) -> S3Client:
    config = Config(
        retries={"mode": "standard", "max_attempts": 5},
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=2 * _PARALLEL,
        s3={"addressing_style": "path" if endpoint else "auto"},
        signature_version="s3v4",
        # Checksum trailers are Amazon's own; other servers refuse them.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    with explained(endpoint or "s3://"):
        return session.client(
            "s3", endpoint_url=endpoint, region_name=session.region_name or "us-east-1", config=config
        )


class S3Folder:
    """The objects of one bucket below one prefix. Paths are relative to it."""

    def __init__(self, client: S3Client, bucket: str, prefix: str) -> None:
        self.client = client
        self.bucket = bucket
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""

    @classmethod
    def open(cls, url: str, *, endpoint: str | None) -> S3Folder:
        """The folder that `s3://BUCKET/PREFIX` names. Does not look whether it exists."""
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not url.startswith("s3://") or not bucket:
            raise WrongUseError(f"{url!r} names no bucket", fix="write s3://BUCKET/PREFIX")
        return cls(s3_client(endpoint), bucket, prefix)

    def url(self, path: str = "") -> str:
        """Address of the folder, or of an object in it."""
        return f"s3://{self.bucket}/{self.prefix}{path}".rstrip("/")

    def objects(self, below: str = "", *, deep: bool = True) -> Sequence[S3Object]:
        """Objects below the folder, or below a folder in it, by path; one level only unless `deep`.

        Raises `NotFoundError` where there is no such bucket.
        """
        found, _ = self._listing(below, "" if deep else "/")
        return found

    def names(self, below: str = "") -> Sequence[str]:
        """Names one level below a folder, of objects and folders alike; none if there is no such folder."""
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
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=f"{self.prefix}{below}", Delimiter=delimiter, **after
            )
            for page in pages:
                folders += [item["Prefix"][skip:] for item in page.get("CommonPrefixes", [])]
                found += [
                    self._object(item, below) for item in page.get("Contents", []) if item["Key"][-1:] != "/"
                ]
        return sorted(found, key=lambda item: item.path), folders

    def _object(self, item: ObjectTypeDef, below: str) -> S3Object:
        key = item["Key"]
        if not key.startswith(self.prefix + below):
            raise NetworkError(
                f"{self.url(below)} lists {shown(key)}, which does not lie below it: no S3 server answers there",
                fix="look at SLIPWAY_S3_ENDPOINT",
            )
        return S3Object(key[len(self.prefix) :], item["Size"], item["ETag"])

    def exists(self, path: str) -> bool:
        """Whether there is such an object."""
        try:
            with explained(self.url(path)):
                self.client.head_object(Bucket=self.bucket, Key=f"{self.prefix}{path}")
        except NotFoundError:
            return False
        return True

    def read(self, path: str) -> bytes:
        """A small object whole. Raises `NotFoundError`."""
        with explained(self.url(path)):
            return self.client.get_object(Bucket=self.bucket, Key=f"{self.prefix}{path}")["Body"].read()

    def read_range(self, path: str, etag: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes of that version of the object, tried again when the connection breaks.

        Raises `ModelError` if the object is no longer the one that was listed.
        """
        for attempt in range(1, _READ_ATTEMPTS + 1):
            try:
                return self._read_range(path, etag, offset, length)
            except NetworkError:
                if attempt == _READ_ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    def _read_range(self, path: str, etag: str, offset: int, length: int) -> bytes:
        with explained(self.url(path)):
            try:
                answer = self.client.get_object(
                    Bucket=self.bucket,
                    Key=f"{self.prefix}{path}",
                    Range=f"bytes={offset}-{offset + length - 1}",
                    IfMatch=etag,
                )
            except ClientError as error:
                if _code_of(error) in _CONFLICT | _MISSING:
                    raise ModelError(
                        f"{self.url(path)} changed while it was read", fix="try again when it rests"
                    ) from error
                raise
            return answer["Body"].read()

    def ranges(self) -> RangeReader:
        """A reader of long ranges, past boto3."""
        return RangeReader(self._sign, self.url)

    def _sign(self, path: str) -> str:
        with explained(self.url(path)):
            return self.client.generate_presigned_url(
                "get_object",
                Params={"Bucket": self.bucket, "Key": f"{self.prefix}{path}"},
                ExpiresIn=SIGNED_FOR_S,
            )

    def create(self, path: str, content: bytes) -> bool:
        """Create an object unless it exists; whether it was created.

        On Amazon's S3 exactly one of several writers succeeds; OpenStack Swift checks, then writes, so that of
        writers at the very same moment several may. Give each object a name of its own.
        """
        try:
            with explained(self.url(path)):
                self.client.put_object(
                    Bucket=self.bucket, Key=f"{self.prefix}{path}", Body=content, IfNoneMatch="*"
                )
        except _ExistsError:
            return False
        return True


class _ExistsError(SlipwayError):
    """A conditional request found what it should not."""


class S3RecordStore:
    """Records below one prefix. Ids sort by the order of writing."""

    def __init__(self, folder: S3Folder) -> None:
        self.folder = folder

    @classmethod
    def open(cls, url: str, *, endpoint: str | None) -> S3RecordStore:
        """The store at `s3://BUCKET/PREFIX`."""
        return cls(S3Folder.open(url, endpoint=endpoint))

    def put(self, record: Record) -> None:
        """Store a new record. Raises `RecordError` if its id is another one's."""
        path, content = record.path, record.to_json().encode()
        # A request whose answer was lost is sent again by boto3, and then meets the object that it made itself.
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
        with ThreadPoolExecutor(_PARALLEL) as pool:
            names = pool.map(lambda stage: self.folder.names_after(f"{stage}/", record_id), StageName)
            return newest_id(itertools.chain.from_iterable(names), record_id)

    def list(self, stage: StageName | None = None) -> Sequence[Record]:
        """All records, of one stage if given, oldest first."""
        return self._read(f"{stage}/" if stage else "", ".json")

    def with_inputs(
        self, stage: StageName, inputs_digest: str, newest: int | None = None
    ) -> Sequence[Record]:
        """A stage's records with these inputs, oldest first; of others only the names are read. At most the
        `newest` so many."""
        return self._read(f"{stage}/", inputs_suffix(inputs_digest), newest)

    def _read(self, below: str, suffix: str, newest: int | None = None) -> Sequence[Record]:
        found = [item.path for item in self.folder.objects(below) if item.path.endswith(suffix)]
        paths = sorted(found, key=lambda path: path.rpartition("/")[2])[-newest if newest else None :]
        with ThreadPoolExecutor(_PARALLEL) as pool:
            return read_all(zip(pool.map(self.folder.read, paths), map(self.folder.url, paths), strict=True))


@contextlib.contextmanager
def explained(address: str) -> Iterator[None]:
    """Turn boto3's errors about `address` into Slipway's, each in one line."""
    try:
        yield
    except ClientError as error:
        raise _from_answer(error, address) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise AccessError(
            f"no credentials for {address}", fix="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    except (ParamValidationError, ValueError) as error:
        raise WrongUseError(f"{address} is not a valid S3 address: {_one_line(error)}") from error
    except BotoCoreError as error:
        raise NetworkError(
            f"{address} cannot be reached: {_one_line(error)}",
            fix="look at SLIPWAY_S3_ENDPOINT and the network, then try again",
        ) from error


def _code_of(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _from_answer(error: ClientError, address: str) -> SlipwayError:
    code = _code_of(error)
    if code in _REFUSED:
        return AccessError(
            f"{address} refused the credentials ({code})",
            fix="look at AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they may do",
        )
    if code in _MISSING:
        return NotFoundError(f"there is no {address} ({code})", fix="look at bucket and prefix")
    if code in _CONFLICT:
        return _ExistsError(f"{address} exists already")
    return NetworkError(f"{address} answered {code}: {_one_line(error)}", fix="try again later")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
