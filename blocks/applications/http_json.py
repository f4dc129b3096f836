"""One JSON request over HTTP, with errors that say who did not answer what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from tasks.core.errors import NetworkError


def send(
    client: httpx.Client,
    method: str,
    path: str,
    *,
    body: Mapping[str, Any] | None = None,
    content: Iterator[bytes] | None = None,
    params: Mapping[str, str] | None = None,
) -> httpx.Response:
    """The answer, whatever its status. Raises `NetworkError` where there is none."""
    try:
        return client.request(method, path, json=body, content=content, params=params)
    except httpx.HTTPError as error:
        raise NetworkError(
            f"{client.base_url}{path.lstrip('/')} does not answer: {error or type(error).__name__}",
            fix="check the address, and that the server runs",
        ) from error


def said(answer: httpx.Response) -> str:
    """What a server says of a refusal, in one line: its `message` or `error`, else the beginning of its answer."""
    value = as_object(answer)
    text = value.get("message") or value.get("error") or answer.text[:200] or answer.reason_phrase
    return " ".join(str(text).split())[:300]


def as_object(answer: httpx.Response) -> dict[str, Any]:
    """The JSON object of an answer; empty for anything else."""
    try:
        value = answer.json()
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
