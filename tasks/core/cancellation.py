"""One stage's `no` stops the stages that run at the same time.

A context variable carries the signal, so that it reaches flows, tasks and threads that copied the context
without being a parameter of each.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tasks.core.errors import StageCancelledError


class Cancellation:
    """Set once, by the stage that said no; long work checks it."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.reason = ""

    def cancel(self, reason: str) -> None:
        """Ask all work that shares this signal to stop."""
        self.reason = self.reason or reason
        self._event.set()

    @property
    def cancelled(self) -> bool:
        """Whether a stop was requested."""
        return self._event.is_set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Sleep until a stop is requested, at most `timeout_s`; whether it was."""
        return self._event.wait(timeout_s)

    def check(self) -> None:
        """Raise `StageCancelledError` if a stop was requested."""
        if self.cancelled:
            raise StageCancelledError(f"stopped: {self.reason}")


_current: ContextVar[Cancellation] = ContextVar("slipway_cancellation")


def begin() -> Cancellation:
    """A new signal for this context and those copied from it."""
    signal = Cancellation()
    _current.set(signal)
    return signal


def current() -> Cancellation:
    """The signal of this context; one that is never set if none was begun."""
    try:
        return _current.get()
    except LookupError:
        return Cancellation()


class _Asking(Cancellation):
    """A signal that is set with the enclosing signal, or once `asked` returns true."""

    def __init__(self, outer: Cancellation, asked: Callable[[], bool], reason: str) -> None:
        super().__init__()
        self._outer, self._asked, self._reason = outer, asked, reason

    @property
    def cancelled(self) -> bool:
        if self._outer.cancelled:
            self.cancel(self._outer.reason)
        elif not super().cancelled and self._asked():
            self.cancel(self._reason)
        return super().cancelled


@contextmanager
def until(asked: Callable[[], bool], reason: str) -> Iterator[None]:
    """Work that is also cancelled, for `reason`, once `asked` returns true; each check of the signal calls it."""
    token = _current.set(_Asking(current(), asked, reason))
    try:
        yield
    finally:
        _current.reset(token)
