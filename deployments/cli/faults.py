"""The command's last resort: an unexpected error becomes one line, and its traceback a file."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path

from tasks.core.errors import SlipwayError
from tasks.core.files import write_atomically
from tasks.core.redaction import redacted
from tasks.core.settings import Settings

DEBUG = "SLIPWAY_DEBUG"
_KEPT = 20
"""Files of the newest faults."""


class UnexpectedError(SlipwayError):
    """An unexpected error: Slipway's own fault until proven otherwise."""


def reader_is_gone() -> bool:
    """Whether what read standard output has closed it, as `head` does. Nothing more is written to it then."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def describe_unexpected(error: Exception) -> UnexpectedError:
    """One line for the error and the place of its traceback: a file in the home or, with SLIPWAY_DEBUG=1, stderr."""
    text = redacted("".join(traceback.format_exception(error)))
    first = next((line for line in str(error).splitlines() if line.strip()), "no message")
    what = f"Slipway failed unexpectedly: {type(error).__name__}: {first.strip()[:300]}"
    if os.environ.get(DEBUG):
        return UnexpectedError(what, fix="report it with what follows", detail=text)
    written = _keep(text)
    if written is None:
        return UnexpectedError(what, fix=f"run it again with {DEBUG}=1, and report what it prints")
    return UnexpectedError(what, fix=f"report it with {written}")


def _keep(text: str) -> Path | None:
    """The file with the traceback; None if the home cannot be written: the fault may be just that."""
    now = datetime.now(UTC)
    try:
        folder = Settings.load().home / "faults"
        file = folder / f"{now:%Y%m%dT%H%M%S.%fZ}-{os.getpid()}.txt"
        command = " ".join(sys.argv[1:3])  # the verb: later arguments may hold what is not to be kept
        write_atomically(file, f"{now.isoformat()} slipway {command}\n{text}")
        for old in sorted(folder.glob("*.txt"))[:-_KEPT]:
            with contextlib.suppress(FileNotFoundError):  # another command may have removed it
                old.unlink()
    except (OSError, SlipwayError):
        return None
    return file
