"""Keep secrets out of a run's logs, including those of libraries, and out of tracebacks."""

from __future__ import annotations

import logging
import traceback
from typing import Any

from tasks.core.redaction import redacted


class _RedactedRecord(logging.LogRecord):
    """A log record without secrets, for all handlers, including Prefect's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.exc_info and self.exc_info[0] is not None:
            text = "".join(traceback.format_exception(*self.exc_info)).rstrip("\n")
            if (hidden := redacted(text)) != text:
                self.exc_text = hidden  # formatters use it unchanged

    def getMessage(self) -> str:  # noqa: N802 - the base class names it so
        return redacted(super().getMessage())


def redact_logs() -> None:
    """Redact all log records of this process from now on. May be called again."""
    logging.setLogRecordFactory(_RedactedRecord)
