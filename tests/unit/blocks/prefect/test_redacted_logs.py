"""No handler shows a secret: not in a message, not in its arguments, not in a traceback."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from blocks.prefect.redacted_logs import redact_logs

PASSWORD = "TopSecret1"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a usual handler writes of the logger `library`."""
    before = logging.getLogRecordFactory()
    monkeypatch.setenv("OPENAI_API_KEY", "from the environment")
    redact_logs()
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    log = logging.getLogger("library")
    log.addHandler(handler)
    yield stream
    log.removeHandler(handler)
    logging.setLogRecordFactory(before)


def test_messages_and_their_arguments(shown: io.StringIO) -> None:
    log = logging.getLogger("library")
    log.error("GET http://ci:%s@registry/x: %d", PASSWORD, 401)
    log.error("refused: from the environment")
    assert shown.getvalue() == "GET http://***@registry/x: 401\nrefused: ***\n"


def test_tracebacks_with_the_faults_below_them(shown: io.StringIO) -> None:
    try:
        try:
            raise ConnectionError(f"http://ci:{PASSWORD}@registry is away")
        except ConnectionError as error:
            raise ValueError("no answer") from error
    except ValueError:
        logging.getLogger("library").exception("the look failed")
    text = shown.getvalue()
    assert PASSWORD not in text
    assert "http://***@registry is away" in text
    assert "ValueError: no answer" in text


def test_a_traceback_without_a_secret_is_as_ever(shown: io.StringIO) -> None:
    try:
        raise ValueError("plain")
    except ValueError:
        logging.getLogger("library").exception("failed")
    assert shown.getvalue().rstrip().endswith('raise ValueError("plain")\nValueError: plain')
