"""Deadlines for waiting on the outside: a mount that hangs, a server that never answers or sends few bytes.

A thread that hangs in the kernel cannot be ended. It is abandoned, and does not keep the process from exiting.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from typing import TypeVar

from tasks.core.errors import DeadlineError

T = TypeVar("T")


def start(call: Callable[[], T]) -> Future[T]:
    """Run `call` in a daemon thread."""
    answer: Future[T] = Future()
    context = copy_context()

    def run() -> None:
        try:
            answer.set_result(context.run(call))
        except BaseException as error:  # noqa: BLE001 - passed on to the caller that waits for the answer
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True, name="bounded").start()
    return answer


def within(timeout_s: float, what: str, call: Callable[[], T]) -> T:
    """The result of `call`. Raises what it raises, or a `DeadlineError` that says that `what` did not answer
    in time."""
    return await_answer(start(call), time.monotonic() + timeout_s, f"{what} ({timeout_s:.0f} s)")


def await_answer(answer: Future[T], deadline: float, what: str) -> T:
    """The result of a started call, awaited until `time.monotonic()` is `deadline`. Raises as `within`."""
    try:
        return answer.result(max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        if answer.done():  # the call's own
            raise
        raise DeadlineError(
            f"{what} did not answer in time", fix="check the network, the mount or the server, then try again"
        ) from None
