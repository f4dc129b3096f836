"""The tree of faults. A verdict that says no is a value (`verdicts.py`), never one of these."""

from __future__ import annotations

import re

from tasks.core.redaction import redacted

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str) -> str:
    """The text without control sequences and characters that UTF-8 cannot encode; line breaks and tabs stay."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(error: Exception, *, longest: int | None = 300) -> str:
    """An error's message, or else its type, on one line of at most `longest` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if longest is None or len(text) <= longest else f"{text[:longest]}…"


class SlipwayError(Exception):
    """Something failed that Slipway can explain.

    `what` says in one line what happened and to what; `fix` says what to do next; `detail` carries evidence such as
    the last lines of a log. `exit_code` is the command's exit status (docs/design.md), `retryable` whether the same
    call may succeed later without a change by the user. Secrets in the texts are redacted.
    """

    exit_code = 1
    retryable = False

    def __init__(self, what: str, *, fix: str | None = None, detail: str | None = None) -> None:
        # It may contain untrusted names.
        self.what = printable(" ".join(redacted(what).splitlines()))
        super().__init__(self.what)
        self.fix = printable(redacted(fix)) if fix is not None else None
        self.detail = printable(redacted(detail)) if detail is not None else None

    def __str__(self) -> str:
        return f"{self.what} ({self.fix})" if self.fix else self.what

    def as_json(self) -> dict[str, str | bool | None]:
        """The error as a JSON object."""
        return {
            "error": type(self).__name__,
            "what": self.what,
            "fix": self.fix,
            "detail": self.detail,
            "retryable": self.retryable,
        }


class WrongUseError(SlipwayError):
    """The request itself is invalid; nothing was done."""

    exit_code = 2


class SpecError(WrongUseError):
    """The deployment spec is not valid."""


class NotFoundError(WrongUseError):
    """Something that the user named does not exist."""


class MissingToolError(SlipwayError):
    """A program or service that the request needs is missing on this machine."""


class ModelError(SlipwayError):
    """A model's files are missing, malformed, truncated or of a refused kind."""


class UnsafeNameError(ModelError):
    """A name from outside leads out of its folder, or is not a valid file name."""


class UnreadableError(ModelError):
    """A model's file cannot be read from its disk; other files that were copied are still good."""


class DiskError(SlipwayError):
    """A file cannot be read or written: access denied, wrong type, read-only disk, or the disk fails."""


class DiskFullError(DiskError):
    """A disk has no space for a write."""


class NetworkError(SlipwayError):
    """A remote server could not be reached."""

    retryable = True


class DeadlineError(NetworkError):
    """A remote server, or a disk that hangs, did not answer in time."""


class AccessError(SlipwayError):
    """A remote server refused the credentials, or there are none."""


class CommandError(SlipwayError):
    """A child process failed."""


class CommandTimeoutError(CommandError):
    """A child process did not end in time."""


class EngineError(SlipwayError):
    """A serving engine failed. This class itself: it answered wrongly, partly or not at all."""


class EngineStartError(EngineError):
    """An engine did not become ready, or not on the intended hardware."""


class EngineHungError(EngineError):
    """An engine sent no byte for longer than allowed."""


class EngineSlowError(EngineError):
    """An engine answered, but not within the time limit of a measurement."""


class EngineDiedError(EngineError):
    """An engine's process ended by itself. `status` is its exit status; 128 plus the signal if a signal killed it.

    `ready` says whether it had been healthy before, `kernel_kills` how many processes the kernel killed for lack
    of memory while it ran; None if that is not known.
    """

    def __init__(
        self,
        what: str,
        *,
        status: int | None,
        ready: bool,
        kernel_kills: int | None = None,
        fix: str | None = None,
        detail: str | None = None,
    ) -> None:
        super().__init__(what, fix=fix, detail=detail)
        self.status = status
        self.ready = ready
        self.kernel_kills = kernel_kills


class PortTakenError(SlipwayError):
    """A port that the service needs is in use."""


class BusyError(SlipwayError):
    """Another run holds the lease on a service, a port or a GPU."""

    retryable = True


class RecordError(SlipwayError):
    """A record cannot be read or written."""


class RolloutError(SlipwayError):
    """A release could not be started or switched to."""


class StageCancelledError(SlipwayError):
    """The stage was stopped, for example because another one said no."""
