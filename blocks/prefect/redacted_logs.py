"""What a run logs, without secrets: also what libraries log, and tracebacks."""

from __future__ import annotations

import logging
import traceback
from typing import Any

from tasks.core.redaction import redacted


class _RedactedRecord(logging.LogRecord):
    """A log record whose texts hold no secrets. All handlers, Prefect's included, show it so."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.exc_info and self.exc_info[0] is not None:
            text = "".join(traceback.format_exception(*self.exc_info)).rstrip("\n")
            if (hidden := redacted(text)) != text:
                self.exc_text = hidden  # formatters take it as it is

    def getMessage(self) -> str:  # noqa: N802 - the base class names it so
        return redacted(super().getMessage())


def redact_logs() -> None:
    """From now on no log record of this process shows a secret. Harmless to repeat."""
    logging.setLogRecordFactory(_RedactedRecord)
