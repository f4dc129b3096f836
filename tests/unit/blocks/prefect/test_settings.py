"""An API that `PREFECT_API_URL` names: asked before any work, with one line for each thing that it can be."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from inline_snapshot import snapshot
from prefect.settings import PREFECT_API_URL, temporary_settings

from blocks.prefect.settings import check_api
from tasks.core.errors import SlipwayError

pytestmark = pytest.mark.slow


@pytest.fixture
def answering() -> Iterator[HTTPServer]:
    """A server that is not Prefect's; `answer` is what it says to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, headers, body = self.server.answer  # type: ignore[attr-defined]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fault(url: str) -> SlipwayError:
    with pytest.raises(SlipwayError) as caught:
        check_api(url)
    assert "PREFECT_API_URL" in caught.value.what
    assert "unset" in (caught.value.fix or "")
    assert "TopSecret1" not in f"{caught.value} {caught.value.detail}"
    return caught.value


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        ((401, {}, b'{"exception_message": "Unauthorized"}'), "refused the credentials (401)"),
        ((403, {}, b""), "refused the credentials (403)"),
        ((404, {}, b'{"detail": "Not Found"}'), "not a Prefect API"),
        ((405, {}, b""), "not a Prefect API"),
        ((500, {}, b""), "answers with 500"),
        ((502, {}, b"<html>"), "answers with 502"),
        ((200, {"Content-Type": "text/html"}, b"<html>Sign in</html>"), "not a Prefect API"),
        ((200, {}, b""), "not a Prefect API"),
        ((200, {"Content-Type": "application/json"}, b'{"a": 1}'), "not a Prefect API"),
        ((200, {"Content-Type": "application/json"}, b"7"), "not a Prefect API"),
        ((200, {"Content-Type": "application/json"}, b'[{"a": 1}]'), "not a Prefect API"),
        ((302, {"Location": "/api"}, b""), "not a Prefect API"),
    ],
)
def test_what_is_not_an_open_prefect_api(
    answer: tuple[int, dict[str, str], bytes], what: str, answering: HTTPServer
) -> None:
    answering.answer = answer  # type: ignore[attr-defined]
    url = f"http://me:TopSecret1@127.0.0.1:{answering.server_port}/api"
    with temporary_settings({PREFECT_API_URL: url}):
        assert what in fault(url).what


def test_an_address_where_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    with temporary_settings({PREFECT_API_URL: url}):
        found = fault(url)
    assert found.what.replace(str(port), "PORT") == snapshot(
        "the Prefect API that PREFECT_API_URL names, http://127.0.0.1:PORT/api, does not answer: [Errno 111] "
        "Connection refused"
    )


@pytest.mark.parametrize(
    "url",
    [
        "not-a-url",
        "http://",
        "https:///api",
        "ftp://x/api",
        "http://[::1/api",
        "http://x:abc/api",
        "http://x:99999/api",
    ],
)
def test_what_is_not_an_address(url: str) -> None:
    assert fault(url).exit_code == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PREFECT_LOGGING_LEVEL", "loud"),
        ("PREFECT_API_REQUEST_TIMEOUT", "soon"),
        ("PREFECT_DEBUG_MODE", "maybe"),
    ],
)
def test_a_setting_that_prefect_does_not_accept_is_named(name: str, value: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        [Path(sys.executable).with_name("slipway"), "stage", "copy", tmp_path, "--to", tmp_path / "to"],
        env={name: value, "SLIPWAY_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    found = re.search(r"^error: Prefect does not accept its setting (\w+): ", ended.stderr, re.MULTILINE)
    assert found
    assert name.lower().endswith(found[1])
