"""A flow's answer reaches its caller, also when the server's reply to its last state was lost."""

from __future__ import annotations

import json
from typing import Any

import httpx
import prefect
import pytest
from prefect import get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import FailedRun, MissingResult
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_RETRY_JITTER_FACTOR, temporary_settings

from blocks.prefect.flows import flow, show_state, step
from tasks.core.errors import StageCancelledError


@flow(name="inner")
def inner() -> str:
    show_state("Cached", "found in a record")
    return "inner answer"


@flow(name="outer")
def outer() -> str:
    answer = inner()
    show_state("Serving", "all is well")
    return f"outer of {answer}"


@flow(name="saying-no")
def saying_no() -> str:
    show_state("Unhealthy", "no completion in 5 s", says_no=True)
    return "the answer"


@flow(name="saying-no-outer")
def saying_no_outer() -> str:
    answer = saying_no()
    show_state("Refused", "health says unhealthy", says_no=True)
    return f"outer of {answer}"


@flow(name="stopped")
def stopped() -> str:
    raise StageCancelledError("stopped: compatibility says block")


@flow(name="failing")
def failing() -> str:
    inner()
    raise ValueError("said by the flow")


def read_run(state: State[Any]) -> FlowRun:
    """The run as the server has it."""
    assert state.state_details.flow_run_id is not None
    with get_client(sync_client=True) as client:
        return client.read_flow_run(state.state_details.flow_run_id)


@pytest.fixture
def lost_replies(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The server keeps each completed state, and its first reply to that is a 503; the names of those states."""
    lost: list[str] = []
    send = httpx.Client.send

    def lossy(client: httpx.Client, request: httpx.Request, **more: Any) -> httpx.Response:
        reply = send(client, request, **more)
        if request.url.path.endswith("/set_state") and reply.status_code < 300:
            state = json.loads(request.content)["state"]
            if state["type"] in ("COMPLETED", "FAILED", "CANCELLED") and state["name"] not in lost:
                lost.append(state["name"])
                return httpx.Response(503, headers={"Retry-After": "0"}, request=request)
        return reply

    monkeypatch.setattr(httpx.Client, "send", lossy)
    return lost


def test_the_state_bears_the_verdict_and_the_caller_gets_the_answer() -> None:
    state = outer(return_state=True)
    assert (state.name, state.message) == ("Serving", "all is well")
    assert outer() == "outer of inner answer"


def test_a_no_is_red_under_its_own_name_and_its_caller_gets_the_answer() -> None:
    state = saying_no_outer(return_state=True)
    assert state.result() == "outer of the answer"
    assert saying_no_outer() == "outer of the answer"
    run = read_run(state)
    assert (run.state_type, run.state_name) == (StateType.FAILED, "Refused")
    assert run.state is not None
    assert run.state.message == "health says unhealthy"


@pytest.mark.parametrize(("saying", "runs"), [("no", 1), ("fault", 2)])
def test_retries_are_for_faults_and_ask_no_question_again(saying: str, runs: int) -> None:
    @flow(name="asking", retries=1, retry_delay_seconds=0)
    def asking() -> str:
        if saying == "no":
            show_state("Unhealthy", "no completion in 5 s", says_no=True)
            return "no"
        raise ValueError("said by the flow")

    state = asking(return_state=True)
    run = read_run(state)
    assert (run.run_count, run.state_type) == (runs, StateType.FAILED)
    assert run.state_name == ("Unhealthy" if saying == "no" else "Failed")


def test_an_answer_survives_a_lost_reply(lost_replies: list[str]) -> None:
    with temporary_settings(updates={PREFECT_CLIENT_RETRY_JITTER_FACTOR: 0}):
        assert outer() == "outer of inner answer"
        assert lost_replies == ["Cached", "Serving"]
        lost_replies.clear()
        assert saying_no_outer() == "outer of the answer"
        assert lost_replies == ["Unhealthy", "Refused"]
        lost_replies.clear()

        @prefect.flow(name="alone")
        def alone() -> State[str]:
            return State(type=StateType.COMPLETED, name="Alone", data="answer")

        with pytest.raises(MissingResult):  # the day this passes, the answer need not be kept
            alone()


def test_a_stage_that_another_stopped_is_cancelled_and_did_not_fail(lost_replies: list[str]) -> None:
    with temporary_settings(updates={PREFECT_CLIENT_RETRY_JITTER_FACTOR: 0}):
        run = read_run(stopped(return_state=True))
        assert run.state is not None
        assert (run.state.type, run.state.message) == (
            StateType.CANCELLED,
            "stopped: compatibility says block",
        )
        lost_replies.clear()
        with pytest.raises(StageCancelledError, match="compatibility says block"):
            stopped()
        assert lost_replies == ["Cancelled"]
    with pytest.raises(StageCancelledError, match="compatibility says block"):
        stopped()  # its reply is not lost again


def test_a_fault_is_never_taken_for_the_answer_of_a_subflow() -> None:
    """Not even one that Prefect raises as it does for a state that says no."""

    @flow(name="failing-late")
    def failing_late() -> str:
        saying_no()
        raise FailedRun("another's message")

    with pytest.raises(FailedRun, match="another's message"):
        failing_late()


def test_what_a_flow_fails_with_is_raised() -> None:
    with pytest.raises(ValueError, match="said by the flow"):
        failing()


@flow(name="with-a-step")
def with_a_step() -> str:
    return step("inner-step", lambda text: text)(inner())


def test_a_flow_is_a_plain_function_where_prefect_is_not_wanted() -> None:
    assert with_a_step() == "inner answer"
    with temporary_settings(updates={PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        assert with_a_step.plain() == "inner answer"
