"""How long work reports its progress, without knowing who listens.

The command shows it on the terminal; a run also sends it to Prefect's log.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from tasks.core.redaction import redacted

Listener = Callable[[str, str], None]
"""Called with the stage's name and one line of text, possibly from several threads."""

_log = logging.getLogger("slipway")
_log.setLevel(logging.INFO)  # at the root logger's default level, a worker's runs would not show any of it


def to_log(stage: str, line: str) -> None:
    """The listener of a run: Prefect collects this logger's messages (`PREFECT_LOGGING_EXTRA_LOGGERS`)."""
    _log.info("%s: %s", stage, line)


_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("slipway_progress", default=(to_log,))


def listen(*listeners: Listener) -> None:
    """Send progress of this context, and of contexts copied from it, to these listeners, or to none."""
    _listeners.set(listeners)


@contextlib.contextmanager
def added_listener(listener: Listener) -> Iterator[None]:
    """Send progress of the block to this listener as well."""
    token = _listeners.set((*_listeners.get(), listener))
    try:
        yield
    finally:
        _listeners.reset(token)


def say(stage: str, line: str) -> None:
    """Report one line of progress. Secrets in it are redacted."""
    line = redacted(line)
    for listener in _listeners.get():
        listener(stage, line)


@dataclass(frozen=True)
class Progress:
    """How far a copy is: bytes done, total bytes, and seconds so far."""

    done_bytes: int
    total_bytes: int
    seconds: float

    @property
    def percent(self) -> float:
        """From 0 to 100."""
        return min(100.0, 100 * self.done_bytes / self.total_bytes) if self.total_bytes else 100.0

    def __str__(self) -> str:
        """`1.2 of 4.5 GB, 1,012 MB/s, 3 s left`."""
        rate = self.done_bytes / max(self.seconds, 1e-6)
        text = f"{self.done_bytes / 1e9:.1f} of {self.total_bytes / 1e9:.1f} GB, {rate / 1e6:,.0f} MB/s"
        left = self.total_bytes - self.done_bytes
        return f"{text}, {left / rate:.0f} s left" if left > 0 < rate else text


class Meter:
    """Counts the bytes that threads have done."""

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self._done = 0
        self._lock = threading.Lock()
        self._start = time.monotonic()

    def add(self, size_bytes: int) -> None:
        """Add bytes that are done."""
        with self._lock:
            self._done += size_bytes

    def progress(self) -> Progress:
        """The current state."""
        return Progress(self._done, self._total, time.monotonic() - self._start)


_meter: ContextVar[Meter | None] = ContextVar("slipway_meter", default=None)


def meter(found: Meter | None) -> None:
    """Count the calls of `advance` in this context, and in contexts copied from it, with this meter, or not
    at all."""
    _meter.set(found)


def advance(size_bytes: int) -> None:
    """Report that many bytes of the current work as done, if a meter counts them."""
    if (found := _meter.get()) is not None:
        found.add(size_bytes)


Follower = Callable[[float, str], None]
"""Called with the share of the work that is done, from 0 to 1, and with the result of the last step."""

_follower: ContextVar[Follower | None] = ContextVar("slipway_follower", default=None)


def follow_steps(follower: Follower | None) -> None:
    """Pass the calls of `step` in this context, and in contexts copied from it, to this follower, or to none."""
    _follower.set(follower)


def step(share: float, line: str) -> None:
    """Report a step of the current work as done, `share` of the total by estimate, if a follower listens."""
    if (found := _follower.get()) is not None:
        found(min(1.0, share), line)
