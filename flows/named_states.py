"""Flows whose state bears their verdict's name, and what they answered whatever becomes of that state.

Prefect hands a caller the data of the state that a flow returned, as the server tells it. Where the server kept the
state but its first reply was lost (a 503 while SQLite was busy), Prefect asks again, is told that the run has made
this transition already, and gets the server's copy: the right state, and no data in it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar, cast

from prefect.exceptions import MissingResult
from prefect.states import Completed

A = TypeVar("A")

_answers: ContextVar[list[Any] | None] = ContextVar("slipway_answers", default=None)


def named(answer: A, name: str, message: str) -> A:
    """The state a flow returns to answer with `answer`. Typed as the answer: that is what its caller gets."""
    heard = _answers.get()
    if heard is not None:
        heard.append(answer)
    return cast(A, Completed(name=name, message=message, data=answer))


def answer_of(run: Callable[[], A]) -> A:
    """What the flow that `run` calls answers. Raises what the flow failed with."""
    heard: list[A] = []
    token = _answers.set(heard)
    try:
        return run()
    except MissingResult:
        if not heard:
            raise
        return heard[-1]  # the flow's own: those of its subflows came before it
    finally:
        _answers.reset(token)
