"""How an engine, or a command that measures one, went wrong: a kind as a value, and the evidence for it."""

from __future__ import annotations

import signal as signals
from enum import StrEnum

from tasks.core.errors import EngineDiedError, EngineError, EngineHungError, EngineSlowError, EngineStartError
from tasks.core.frozen import Frozen
from tasks.engines.out_of_memory import was_out_of_memory

_SIGNALLED = 128
_CANNOT_RUN = (126, 127)
"""What a shell, and the guard, end with when a program cannot be started."""


class FailureKind(StrEnum):
    """The ways in which a measurement fails; each asks for something else to be done."""

    OUT_OF_MEMORY = "out of memory"
    CRASHED = "crashed"
    NOT_STARTED = "did not start"
    HUNG = "hung"
    GARBAGE = "garbage"
    SLOW = "slow"


class Failure(Frozen):
    """One measurement that went wrong.

    `what` is one line. Of a process that ended: its `exit_status`, or the name of the `signal` that killed it.
    `log_tail` are the last lines that it wrote.
    """

    kind: FailureKind
    what: str
    exit_status: int | None = None
    signal: str | None = None
    log_tail: str | None = None

    @property
    def line(self) -> str:
        """Kind and words in one line."""
        return self.what if self.what == self.kind else f"{self.kind}: {self.what}"


def failure_of(error: EngineError, *, log_tail: str | None = None) -> Failure:
    """What an engine's error says about it. `log_tail` is used if the error carries no lines of its own."""
    log = error.detail or log_tail or None
    if isinstance(error, EngineDiedError):
        kind = FailureKind.CRASHED if error.ready else FailureKind.NOT_STARTED
        return _ended(kind, error.what, error.status, log, error.kernel_kills)
    kinds = {
        EngineStartError: FailureKind.NOT_STARTED,
        EngineHungError: FailureKind.HUNG,
        EngineSlowError: FailureKind.SLOW,
    }
    kind = next((kind for type_, kind in kinds.items() if isinstance(error, type_)), FailureKind.GARBAGE)
    if was_out_of_memory(None, error.what):  # an engine may survive it and say so in its answer
        kind = FailureKind.OUT_OF_MEMORY
    return Failure(kind=kind, what=error.what, log_tail=log)


def failure_of_exit(status: int, log: str, *, kernel_kills: int | None) -> Failure:
    """What a command that ended with `status` (not 0) and wrote `log` last says about itself.

    `kernel_kills` as `was_out_of_memory` takes it.
    """
    lines = log.strip().splitlines()
    said = f": {lines[-1]}" if lines else ""
    kind = FailureKind.NOT_STARTED if status in _CANNOT_RUN else FailureKind.CRASHED
    return _ended(kind, f"{name_end(status)}{said}", status, log.strip() or None, kernel_kills)


def _ended(
    kind: FailureKind, what: str, status: int | None, log: str | None, kernel_kills: int | None
) -> Failure:
    if was_out_of_memory(status, log or "", kernel_kills=kernel_kills):
        kind = FailureKind.OUT_OF_MEMORY
    signal = signal_of(status)
    return Failure(kind=kind, what=what, exit_status=None if signal else status, signal=signal, log_tail=log)


def signal_of(status: int | None) -> str | None:
    """Name of the signal that ended a process whose status is 128 and the signal's number; else None."""
    try:
        return signals.Signals((status or 0) - _SIGNALLED).name
    except ValueError:
        return None


def name_end(status: int | None) -> str:
    """How a process ended, in words."""
    return f"killed by {name}" if (name := signal_of(status)) else f"exit status {status}"
