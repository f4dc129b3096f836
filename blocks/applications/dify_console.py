"""A Dify console with its account, kept in Prefect."""

from __future__ import annotations

from typing import cast

from prefect.blocks.core import Block
from prefect.exceptions import PrefectException
from pydantic import Field, SecretStr

from tasks.core.errors import AccessError
from tasks.core.redaction import remember


class DifyConsole(Block):
    """Address and account of a Dify console: an owner or administrator of the workspace."""

    _block_type_name = "Slipway Dify console"
    _block_type_slug = "slipway-dify-console"
    _description = "A Dify server that served models are registered with."

    address: str = Field(description="Address of the console, e.g. https://dify.example.")
    email: str = Field(description="Account.")
    password: SecretStr = Field(description="Its password.")


def load_console(name: str) -> DifyConsole:
    """The block saved under that name. Raises `AccessError` if there is none."""
    try:
        found = cast("DifyConsole", DifyConsole.load(name, _sync=True))  # type: ignore[call-arg]
    except (ValueError, PrefectException) as error:
        raise AccessError(
            f"Prefect has no Dify console block {name!r}",
            fix="save one of type `Slipway Dify console` under that name",
            detail=" ".join(str(error).split())[:300],
        ) from error
    remember(found.password.get_secret_value())
    return found
