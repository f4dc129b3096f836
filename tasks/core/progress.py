"""How work that takes time says where it is, without knowing who listens.

The command shows it on the terminal; a run also sends it to Prefect's log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar

Listener = Callable[[str, str], None]
"""Called with the stage's name and one line of text, possibly from several threads."""

_log = logging.getLogger("slipway")
_log.setLevel(logging.INFO)  # left to the root's default, a worker's runs would show none of it


def to_log(stage: str, line: str) -> None:
    """The listener of a run: Prefect takes what this logger says (`PREFECT_LOGGING_EXTRA_LOGGERS`)."""
    _log.info("%s: %s", stage, line)


_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("slipway_progress", default=(to_log,))


def listen(*listeners: Listener) -> None:
    """Send progress of this context, and of contexts copied from it, to these listeners, or to none."""
    _listeners.set(listeners)


def say(stage: str, line: str) -> None:
    """Report one line of progress."""
    for listener in _listeners.get():
        listener(stage, line)
