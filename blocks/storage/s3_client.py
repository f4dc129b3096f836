"""A client for one S3 server: address, credentials and retries.

Never the CRT transfer client: it ignores a custom endpoint (boto3#4839).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

from blocks.storage.ranges import pause_s
from blocks.storage.s3_errors import SLOW_DOWN, explained

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PARALLEL = 16
_SLOW_DOWN_ATTEMPTS = 10


def s3_client(endpoint: str | None, region: str | None = None) -> S3Client:
    """A client for the S3 server at `endpoint`, Amazon's if None; requests are signed for `region` if one is given.

    With the address and credentials of the block that `SLIPWAY_S3_BLOCK` names, else with boto3's usual ones.
    """
    name = os.environ.get("SLIPWAY_S3_BLOCK")
    if not name:
        return _client(boto3.session.Session(region_name=region), endpoint)
    from blocks.storage.object_storage import load_storage

    storage = load_storage(name)
    session = boto3.session.Session(
        aws_access_key_id=storage.access_key,
        aws_secret_access_key=storage.secret_key.get_secret_value(),
        region_name=region or storage.region,
    )
    return _client(session, storage.endpoint or endpoint)


def _client(session: boto3.session.Session, endpoint: str | None) -> S3Client:
    config = Config(
        retries={"mode": "standard", "max_attempts": 5},
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=2 * PARALLEL,
        s3={"addressing_style": "path" if endpoint else "auto"},
        signature_version="s3v4",
        # Checksum trailers are Amazon's own; other servers refuse them.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    with explained(endpoint or "s3://"):
        client = session.client(
            "s3", endpoint_url=endpoint, region_name=session.region_name or "us-east-1", config=config
        )
    # boto3's own retries end after seconds, but a server may be busy for tens of seconds.
    client.meta.events.register("needs-retry.s3", _pause_where_busy)  # type: ignore[arg-type]  # it may return None
    return client


def _pause_where_busy(
    response: tuple[Any, Mapping[str, Any]] | None, attempts: int, **_: object
) -> float | None:
    """Seconds to wait before the request is repeated; None unless the server says that it is busy."""
    if response is None or response[1].get("Error", {}).get("Code") not in SLOW_DOWN:
        return None
    return pause_s(attempts) if attempts < _SLOW_DOWN_ATTEMPTS else None


class BucketRegion:
    """The region of a client's bucket, if its server has named it.

    boto3 follows it automatically, except for presigned addresses.
    """

    def __init__(self, client: S3Client) -> None:
        self.region: str | None = None
        client.meta.events.register("needs-retry.s3", self._hear)

    def _hear(self, response: tuple[Any, Mapping[str, Any]] | None, **_: object) -> None:
        if response is not None:
            headers = response[1].get("ResponseMetadata", {}).get("HTTPHeaders", {})
            self.region = headers.get("x-amz-bucket-region") or self.region
