"""Flows that answer: a caller gets what the function returns, and the run's state shows it.

A verdict that says no has Prefect's type `Failed` and the verdict's name: red in every list, but not a fault
(docs/adr/0090). Its callers get the answer nevertheless.

Prefect gives a caller the data of the returned state as the server reports it. If the server stored the state but its
first reply was lost (a 503 while SQLite was busy), Prefect retries, learns that the run has made this transition, and
gets the server's copy: the right state, but without data. So the answer is kept here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar, cast, overload

from prefect import Flow, get_client, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, StateType
from prefect.context import FlowRunContext
from prefect.exceptions import CancelledRun, FailedRun, MissingResult
from prefect.states import Cancelled

from blocks.prefect.redacted_logs import redact_logs
from tasks.core.errors import StageCancelledError
from tasks.core.stage import Outcome

P = ParamSpec("P")
R = TypeVar("R")

redact_logs()  # every flow imports this module, in the command as in a worker


class AnswerState(State[Any]):
    """The last state of a flow that answered. Its result is the answer, even if its type is `Failed`."""

    def result(self, *_: Any, **__: Any) -> Any:
        """The answer. Prefect's own would raise for a state of type `Failed`."""
        return getattr(self.data, "result", self.data)  # Prefect puts the data into a record of its own


class _Call:
    """One call of a flow: the state that it asked for, and its answer."""

    def __init__(self) -> None:
        self.state: AnswerState | None = None
        self.answers: list[Any] = []


_call: ContextVar[_Call | None] = ContextVar("slipway_call", default=None)
_plain: ContextVar[bool] = ContextVar("slipway_plain", default=False)


class AnsweringFlow(Flow[P, R]):
    """A Prefect flow around a function that returns its answer."""

    def __init__(self, fn: Callable[P, R], **options: Any) -> None:
        super().__init__(fn, **options)
        self.function = fn
        self.fn = _ending_in_a_state(fn)

    def plain(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The function without Prefect, including all flows and steps that it calls."""
        token = _plain.set(True)
        try:
            return self.function(*args, **kwargs)
        finally:
            _plain.reset(token)

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...

    @overload
    def __call__(self, *args: Any, return_state: Literal[True], **kwargs: Any) -> State[R]: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The answer of a run. Raises what the function raises.

        With `return_state`, the state of the run.
        """
        if _plain.get():
            return self.function(*args, **kwargs)
        call = _Call()
        token = _call.set(call)
        try:
            return super().__call__(*args, **kwargs)
        except (MissingResult, FailedRun):  # as the server's copy of the state has it
            if not call.answers:
                raise
        except CancelledRun as error:
            raise StageCancelledError(str(error)) from error
        finally:
            _call.reset(token)
        return call.answers[-1]


def flow(**options: Any) -> Callable[[Callable[P, R]], AnsweringFlow[P, R]]:
    """As Prefect's decorator, for a function that returns its answer."""
    return lambda fn: AnsweringFlow(fn, **options)


def show_state(name: str, message: str, *, says_no: bool = False) -> None:
    """Set how the calling flow's run ends, if its answer is not an `Outcome`, which sets its own state."""
    call = _call.get()
    if call is not None:
        kind = StateType.FAILED if says_no else StateType.COMPLETED
        call.state = AnswerState(type=kind, name=name, message=message)


def step(
    name: str, function: Callable[P, R], *, run_name: str | None = None, **options: Any
) -> Callable[P, R]:
    """The function as a task of the run that calls it; outside a run, the function."""
    shown = task(name=name, task_run_name=run_name, cache_policy=NO_CACHE, persist_result=False, **options)(
        function
    )

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        is_shown = FlowRunContext.get() is not None and not _plain.get()
        return (shown if is_shown else function)(*args, **kwargs)

    return call


def _ending_in_a_state(function: Callable[P, R]) -> Callable[P, R]:
    """The function as Prefect runs it: it returns the run's last state."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        # A run that a worker starts has no caller; a retried one has a new state to show.
        call = _call.get() or _Call()
        call.state = None
        token = _call.set(call)
        try:
            answer = function(*args, **kwargs)
        except StageCancelledError as error:
            return cast(R, Cancelled(message=error.what, data=error))
        finally:
            _call.reset(token)
        call.answers.append(answer)
        state = call.state or _state_of(answer)
        if state is None:
            return answer
        state.data = answer
        if state.type is StateType.FAILED:
            _retry_no_more()
        return cast(R, state)

    # Prefect would look for the types of the parameters in this module.
    run.__signature__ = inspect.signature(function, eval_str=True)  # type: ignore[attr-defined]
    return run


def _state_of(answer: object) -> AnswerState | None:
    """The state of an outcome: `Cached`, or its verdict, red if that says no. None for anything else."""
    if not isinstance(answer, Outcome):
        return None
    name = "Cached" if answer.cached else answer.verdict.replace("_", " ").capitalize()
    kind = StateType.FAILED if answer.says_no else StateType.COMPLETED
    return AnswerState(type=kind, name=name, message=answer.headline)


def _retry_no_more() -> None:
    """Cancel the retries of the calling run: they are for faults, and would repeat an answered question."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None or not run.empirical_policy.retries:
        return
    with get_client(sync_client=True) as client:
        client.update_flow_run(
            run.id, empirical_policy=run.empirical_policy.model_copy(update={"retries": 0})
        )
