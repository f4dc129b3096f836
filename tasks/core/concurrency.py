"""Subflows at the same time, in threads that carry Prefect's and Slipway's context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import Any

from tasks.core.cancellation import Cancellation
from tasks.core.errors import SlipwayError, StageCancelledError
from tasks.core.stage import Outcome

_LOOK_S = 0.5
"""An interrupt just before the wait begins does not end it: Python only checks again after the wait."""


def run_concurrently(
    works: Sequence[Callable[[], Outcome[Any]]], cancellation: Cancellation
) -> list[Outcome[Any] | None]:
    """Outcomes in the order of `works`; None for one that was cancelled because another said no.

    The first to say no, or to fail, cancels the others. A fault is raised once all have ended, so that
    nothing continues in the background.
    """
    with ThreadPoolExecutor(len(works), thread_name_prefix="stage") as pool:
        try:
            futures = [pool.submit(copy_context().run, work) for work in works]
            waiting = set(futures)
            while waiting:
                ended, waiting = wait(waiting, timeout=_LOOK_S, return_when=FIRST_COMPLETED)
                for future in ended:
                    if reason := _reason_to_stop(future):
                        cancellation.cancel(reason)
        except BaseException:
            # Interrupted: without the signal, leaving the pool would wait for work that is no longer wanted.
            cancellation.cancel("interrupted")
            raise
    faults = [error for future in futures if (error := future.exception())]
    for fault in faults:
        if not isinstance(fault, StageCancelledError):
            raise fault
    return [None if future.exception() else future.result() for future in futures]


def _reason_to_stop(future: Future[Outcome[Any]]) -> str | None:
    error = future.exception()
    if isinstance(error, StageCancelledError):
        return None
    if error is not None:
        return error.what if isinstance(error, SlipwayError) else str(error) or type(error).__name__
    outcome = future.result()
    return f"{outcome.stage} says {outcome.verdict}" if outcome.says_no else None
