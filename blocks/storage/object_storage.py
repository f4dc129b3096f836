"""An S3 server with its credentials, kept in Prefect: one place to rotate them for every worker.

Used if `SLIPWAY_S3_BLOCK` names a saved block; otherwise boto3 finds credentials as usual.
"""

from __future__ import annotations

from typing import cast

import httpx
from prefect.blocks.core import Block
from prefect.exceptions import PrefectException
from pydantic import Field, SecretStr

from tasks.core.errors import AccessError
from tasks.core.redaction import remember


class ObjectStorage(Block):
    """Address and credentials of an S3 server."""

    _block_type_name = "Slipway object storage"
    _block_type_slug = "slipway-object-storage"
    _description = "An S3 server that holds models, a registry or Slipway's records."

    endpoint: str | None = Field(None, description="Address of the server; Amazon's when empty.")
    region: str = Field("us-east-1", description="Region for which requests are signed.")
    access_key: str = Field(description="Access key ID.")
    secret_key: SecretStr = Field(description="Secret access key.")


def load_storage(name: str) -> ObjectStorage:
    """The block saved under that name. Raises `AccessError` if there is none."""
    try:
        found = cast("ObjectStorage", ObjectStorage.load(name, _sync=True))  # type: ignore[call-arg]
    except (ValueError, PrefectException, httpx.HTTPError) as error:
        raise AccessError(
            f"Prefect has no object storage block {name!r} (SLIPWAY_S3_BLOCK)",
            fix="save one of type `Slipway object storage` under that name",
            detail=" ".join(str(error).split())[:300],
        ) from error
    remember(found.secret_key.get_secret_value())
    return found
