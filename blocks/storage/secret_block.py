"""A Secret block of Prefect."""

from __future__ import annotations

from typing import Any, cast

import httpx
from prefect.blocks.system import Secret
from prefect.exceptions import PrefectException

from tasks.core.errors import AccessError, SpecError


def load_secret(name: str, *, named_by: str = "serving.api_key") -> str:
    """The text in the Secret block saved under that name, which the key or variable `named_by` names.

    Raises `AccessError` if there is none, `SpecError` if it is not text.
    """
    try:
        found = cast("Secret[Any]", Secret.load(name, _sync=True))  # type: ignore[call-arg]
        value = found.get()
    except (ValueError, PrefectException, httpx.HTTPError) as error:
        raise AccessError(
            f"Prefect has no Secret block {name!r}, which {named_by} names",
            fix="save one of type `Secret` under that name",
        ) from error
    if not isinstance(value, str):
        raise SpecError(f"the Secret block {name!r} does not contain text", fix="save it as text")
    return value
