"""A Secret block of Prefect."""

from __future__ import annotations

from typing import Any, cast

import httpx
from prefect.blocks.system import Secret
from prefect.exceptions import PrefectException

from tasks.core.errors import AccessError, SpecError


def load_secret(name: str) -> str:
    """The text in the Secret block saved under that name. Raises `AccessError` if there is none, `SpecError`."""
    try:
        found = cast("Secret[Any]", Secret.load(name, _sync=True))  # type: ignore[call-arg]
        value = found.get()
    except (ValueError, PrefectException, httpx.HTTPError) as error:
        raise AccessError(
            f"Prefect has no Secret block {name!r}, which serving.api_key names",
            fix="save one of type `Secret` under that name",
        ) from error
    if not isinstance(value, str):
        raise SpecError(f"the Secret block {name!r} does not contain text", fix="save one key a line in it")
    return value
