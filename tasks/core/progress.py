"""How work that takes time says where it is, without knowing who listens.

The command shows it on the terminal; a run started by a worker sends it to Prefect's log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar

Listener = Callable[[str, str], None]
"""Called with the stage's name and one line of text, possibly from several threads."""

_log = logging.getLogger("slipway")


def _to_log(stage: str, line: str) -> None:
    _log.info("%s: %s", stage, line)


_listener: ContextVar[Listener] = ContextVar("slipway_progress", default=_to_log)


def listen(listener: Listener) -> None:
    """Send progress of this context, and of contexts copied from it, to `listener`."""
    _listener.set(listener)


def say(stage: str, line: str) -> None:
    """Report one line of progress."""
    _listener.get()(stage, line)
