"""One stage's `no` stops the stages that run beside it.

A context variable carries the signal, so that it reaches flows, tasks and threads that copied the context
without becoming a parameter of any of them.
"""

from __future__ import annotations

import threading
from contextvars import ContextVar

from tasks.core.errors import StageCancelledError


class Cancellation:
    """Set once, by the stage that said no; looked at by work that takes long."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.reason = ""

    def cancel(self, reason: str) -> None:
        """Ask all that share this signal to stop."""
        self.reason = self.reason or reason
        self._event.set()

    @property
    def cancelled(self) -> bool:
        """Whether someone asked to stop."""
        return self._event.is_set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Sleep until someone asks to stop, at most `timeout_s`; whether someone did."""
        return self._event.wait(timeout_s)

    def check(self) -> None:
        """Raise `StageCancelledError` if someone asked to stop."""
        if self.cancelled:
            raise StageCancelledError(f"stopped: {self.reason}")


_current: ContextVar[Cancellation] = ContextVar("slipway_cancellation")


def begin() -> Cancellation:
    """A new signal for this context and those copied from it."""
    signal = Cancellation()
    _current.set(signal)
    return signal


def current() -> Cancellation:
    """The signal of this context; one that nobody sets where none was begun."""
    try:
        return _current.get()
    except LookupError:
        return Cancellation()
