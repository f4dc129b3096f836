"""The guard of the local API, without Prefect behind it."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from blocks.prefect.local_api import guarded

OWN = "http://127.0.0.1:4200"
APP = Starlette(routes=[Route("/", lambda _: PlainTextResponse("served"))])


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        (OWN, 200),
        ("", 403),
        ("null", 403),
        ("http://127.0.0.1:1", 403),
        ("https://127.0.0.1:4200", 403),
        ("http://[::1", 403),
        ("http://[v1.x]]/", 403),
        ("http://\N{FULLWIDTH SOLIDUS}", 403),
        ("http://127.0.0.1:4200/page", 403),
    ],
)
def test_only_its_own_pages_and_programs_are_served(origin: str | None, status: int) -> None:
    async def ask() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(guarded(APP)), base_url=OWN) as client:
            return (await client.get("/", headers=headers)).status_code

    headers = {} if origin is None else {"Origin": origin.encode()}
    assert asyncio.run(ask()) == status
