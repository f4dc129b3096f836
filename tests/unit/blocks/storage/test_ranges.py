"""Long ranges over TLS: certificates are checked, by the bundle that AWS' own tools are given. Addresses end in time."""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from certificates import write_certificate

from blocks.storage.ranges import SIGNED_FOR_S, RangeReader
from blocks.storage.s3_errors import S3Answers
from tasks.core.direct_io import ring
from tasks.core.errors import NetworkError

CONTENT = bytes(range(256)) * 4000


class Object(BaseHTTPRequestHandler):
    """One object, by ranges, with connections kept open."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        body = CONTENT[first : last + 1]
        self.send_response(206 if self.headers["If-Match"] == '"1"' else 412)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return write_certificate(tmp_path)


@pytest.fixture
def reader(certificate: Path) -> Iterator[RangeReader]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    with serving(context) as port:
        yield RangeReader(lambda path: f"https://127.0.0.1:{port}/{path}", lambda path: path, S3Answers())


@contextlib.contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[int]:
    """The port of a server that holds the object."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Object) as server:
        server.daemon_threads = True
        server.block_on_close = False
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_ranges_come_over_tls_where_the_certificate_is_known(
    reader: RangeReader, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    (buffer,) = ring(1, len(CONTENT))
    told = bytearray()
    for offset in (0, 7):
        reader.read_into("w", '"1"', offset, len(CONTENT) - offset, buffer, 0, told.extend)
        assert buffer.view[: len(CONTENT) - offset] == CONTENT[offset:]
    assert told == CONTENT + CONTENT[7:]


def test_a_certificate_that_nobody_knows_is_refused(
    reader: RangeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("blocks.storage.ranges._PAUSE_S", 0.0)
    (buffer,) = ring(1, 10)
    with pytest.raises(NetworkError, match=r"w cannot be reached: .*certificate verify failed"):
        reader.read_into("w", '"1"', 0, 10, buffer, 0, len)


def test_an_address_is_signed_anew_in_time_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's signature ends by the clock also where this machine slept meanwhile."""
    signed: list[str] = []
    (buffer,) = ring(1, 10)
    with serving() as port:

        def sign(path: str) -> str:
            signed.append(path)
            return f"http://127.0.0.1:{port}/{path}"

        reader = RangeReader(sign, lambda path: path, S3Answers())
        begin = time.time()
        for later_s, times in [(0.0, 1), (SIGNED_FOR_S / 3, 1), (SIGNED_FOR_S * 0.6, 2)]:
            monkeypatch.setattr("blocks.storage.ranges.time.time", lambda later_s=later_s: begin + later_s)
            reader.read_into("w", '"1"', 0, 10, buffer, 0, len)
            assert len(signed) == times
