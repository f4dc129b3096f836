"""Flows whose state bears their verdict's name, and what they answered whatever becomes of that state.

A verdict that says no is of Prefect's type `Failed`, under the verdict's name: red in every list, and no fault
(docs/adr/0090). Its callers get the answer all the same: `AnswerState` never raises.

Prefect hands a caller the data of the state that a flow returned, as the server tells it. Where the server kept the
state but its first reply was lost (a 503 while SQLite was busy), Prefect asks again, is told that the run has made
this transition already, and gets the server's copy: the right state, and no data in it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar, cast

from prefect import get_client
from prefect.client.schemas.objects import State, StateType
from prefect.context import FlowRunContext
from prefect.exceptions import FailedRun, MissingResult

A = TypeVar("A")


class AnswerState(State[Any]):
    """The last state of a flow that answered. Its result is the answer, even where its type is `Failed`."""

    def result(self, *_: Any, **__: Any) -> Any:
        """The answer. Prefect's own would raise for a state of type `Failed`."""
        return getattr(self.data, "result", self.data)  # Prefect puts the data into a record of its own


_states: ContextVar[list[tuple[AnswerState, Any]] | None] = ContextVar("slipway_states", default=None)


def named(answer: A, name: str, message: str, *, says_no: bool = False) -> A:
    """The state a flow returns to answer with `answer`. Typed as the answer: that is what its caller gets."""
    if says_no:
        _retry_no_more()
    state = AnswerState(
        type=StateType.FAILED if says_no else StateType.COMPLETED, name=name, message=message, data=answer
    )
    heard = _states.get()
    if heard is not None:
        heard.append((state, answer))
    return cast(A, state)


def answer_of(run: Callable[[], A]) -> A:
    """What the flow that `run` calls answers. Raises what the flow failed with."""
    heard: list[tuple[AnswerState, Any]] = []
    token = _states.set(heard)
    try:
        return run()
    except MissingResult:
        if not heard:
            raise
    except FailedRun as error:  # as the server's copy of a state that says no has it
        if not heard or str(error) != heard[-1][0].message:
            raise
    finally:
        _states.reset(token)
    return cast(A, heard[-1][1])  # the flow's own: those of its subflows came before it


def _retry_no_more() -> None:
    """Take back the retries of the calling run: they are for faults, and would ask again what was answered."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None or not run.empirical_policy.retries:
        return
    with get_client(sync_client=True) as client:
        client.update_flow_run(
            run.id, empirical_policy=run.empirical_policy.model_copy(update={"retries": 0})
        )
