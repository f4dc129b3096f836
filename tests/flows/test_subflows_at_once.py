"""Subflows that begin together do not meet in the server's database (docs/adr/0007)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import httpx
import pytest
from prefect import task
from prefect.artifacts import create_markdown_artifact

from blocks.prefect.flows import flow
from tasks.core.cancellation import begin
from tasks.core.concurrency import run_concurrently
from tasks.core.result import StageResult
from tasks.core.stage import Outcome
from tasks.core.verdicts import StageName


@task
def step(number: int) -> int:
    return number


@flow(name="beside-others")
def beside_others(number: int) -> Outcome[Any]:
    step(number)
    create_markdown_artifact(key="beside-others", markdown=f"{step(number)}")
    verdict = "verified"
    return Outcome(
        stage=StageName.STAGING,
        verdict=verdict,
        cached=False,
        seconds=0,
        record="",
        headline=f"{number}",
        result=StageResult(verdict=verdict),
    )


@flow(name="three-at-once")
def three_at_once() -> list[str]:
    def start(number: int) -> Any:
        return lambda: beside_others(number)

    outcomes = run_concurrently([start(number) for number in range(3)], begin())
    outcomes.append(beside_others(3))
    return [outcome.headline for outcome in outcomes if outcome]


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often the server replied with which status."""
    counted: Counter[int] = Counter()
    sync_send, async_send = httpx.Client.send, httpx.AsyncClient.send

    def send(client: httpx.Client, request: httpx.Request, **more: Any) -> httpx.Response:
        reply = sync_send(client, request, **more)
        counted[reply.status_code] += 1
        return reply

    async def send_async(client: httpx.AsyncClient, request: httpx.Request, **more: Any) -> httpx.Response:
        reply = await async_send(client, request, **more)
        counted[reply.status_code] += 1
        return reply

    monkeypatch.setattr(httpx.Client, "send", send)
    monkeypatch.setattr(httpx.AsyncClient, "send", send_async)
    return counted


def test_flows_that_begin_together_are_not_sent_away(replies: Counter[int]) -> None:
    """With Prefect's own pool of connections two or three requests of each run are (measured)."""
    for _ in range(3):
        assert three_at_once() == ["0", "1", "2", "3"]
    assert replies[201] > 50
    assert replies[503] == 0
