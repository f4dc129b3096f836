"""A flow's answer reaches its caller, also when the server's reply to its last state was lost."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from prefect import flow
from prefect.exceptions import MissingResult
from prefect.settings import PREFECT_CLIENT_RETRY_JITTER_FACTOR, temporary_settings

from flows.named_states import answer_of, named


@flow(name="inner")
def inner() -> str:
    return named("inner answer", "Cached", "found in a record")


@flow(name="outer")
def outer() -> str:
    return named(f"outer of {answer_of(inner)}", "Serving", "all is well")


@flow(name="failing")
def failing() -> str:
    answer_of(inner)
    raise ValueError("said by the flow")


@pytest.fixture
def lost_replies(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The server keeps each completed state, and its first reply to that is a 503; the names of those states."""
    lost: list[str] = []
    send = httpx.Client.send

    def lossy(client: httpx.Client, request: httpx.Request, **more: Any) -> httpx.Response:
        reply = send(client, request, **more)
        if request.url.path.endswith("/set_state") and reply.status_code < 300:
            state = json.loads(request.content)["state"]
            if state["type"] == "COMPLETED" and state["name"] not in lost:
                lost.append(state["name"])
                return httpx.Response(503, headers={"Retry-After": "0"}, request=request)
        return reply

    monkeypatch.setattr(httpx.Client, "send", lossy)
    return lost


def test_the_state_bears_the_verdict_and_the_caller_gets_the_answer() -> None:
    state = outer(return_state=True)
    assert (state.name, state.message) == ("Serving", "all is well")
    assert answer_of(outer) == "outer of inner answer"


def test_an_answer_survives_a_lost_reply(lost_replies: list[str]) -> None:
    with temporary_settings(updates={PREFECT_CLIENT_RETRY_JITTER_FACTOR: 0}):
        assert answer_of(outer) == "outer of inner answer"
        assert lost_replies == ["Cached", "Serving"]
        lost_replies.clear()
        with pytest.raises(
            MissingResult
        ):  # what Prefect alone makes of it: the day this passes, this module can go
            outer()


def test_what_a_flow_fails_with_is_raised() -> None:
    with pytest.raises(ValueError, match="said by the flow"):
        answer_of(failing)
