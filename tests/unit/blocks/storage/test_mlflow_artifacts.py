"""Files behind MLflow's proxy, which sends whole files only, and may break off or be busy."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from blocks.storage.sources import open_source
from tasks.core.direct_io import ring
from tasks.core.errors import ModelError, NetworkError, NotFoundError, WrongUseError
from tasks.core.progress import added_listener

SOURCE = "mlflow-artifacts:/1/run/artifacts/model"
CONTENT = bytes(range(256)) * 20_000
"""Longer than what is received at once."""


@dataclass
class Deviations:
    breaks: int = 0
    busy: int = 0
    short: bool = False
    sent: list[str] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def do_GET(self) -> None:
        ways = self.server.ways
        path, _, question = self.path.partition("?")
        if question:
            files = [
                {"path": "1/run/artifacts/model/w", "is_dir": False, "file_size": len(CONTENT)},
                {"path": "1/run/artifacts/model/original", "is_dir": True},
            ]
            self._answer(200, json.dumps({"files": files}).encode())
        elif ways.busy:
            ways.busy -= 1
            self._answer(503, b"", {"Retry-After": "0"})
        elif path.endswith("/1/run/artifacts/model/w"):
            ways.sent.append(path)
            self._send(CONTENT[:-1] if ways.short else CONTENT)
        else:
            self._answer(404, b"{}")

    def _send(self, content: bytes) -> None:
        """In chunks, as MLflow does: the length is not known before."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        half = len(content) // 2
        try:
            self.wfile.write(b"%x\r\n%b\r\n" % (half, content[:half]))
            if self.server.ways.breaks:
                self.server.ways.breaks -= 1
                self.close_connection = True
                return
            self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(content) - half, content[half:]))
        except OSError:  # the reader has what it needs
            self.close_connection = True

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.ways = Deviations()

    def handle_error(self, *_: object) -> None:
        """A reader that has what it needs closes the connection."""


@pytest.fixture
def proxy(slipway_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with Proxy() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("SLIPWAY_REGISTRY", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr("blocks.storage.mlflow_artifacts._PAUSE_S", 0.0)
        yield server
        server.shutdown()


def read_in_order(size: int = 1_000_000) -> bytes:
    """The whole file in pieces, as a copy reads it."""
    source = open_source(SOURCE, endpoint=None)
    (file,) = source.list_files()
    (buffer,) = ring(1, size)
    told = bytearray()
    for offset in range(0, file.size_bytes, size):
        length = min(size, file.size_bytes - offset)
        source.read_into(file, offset, length, buffer, 0, told.extend)
        assert buffer.view[:length] == CONTENT[offset : offset + length]
    return bytes(told)


def test_a_file_that_is_read_in_order_is_sent_once(proxy: Proxy) -> None:
    assert read_in_order() == CONTENT
    assert len(proxy.ways.sent) == 1


def test_what_was_read_already_is_sent_again(proxy: Proxy) -> None:
    source = open_source(SOURCE, endpoint=None)
    (file,) = source.list_files()
    for offset in (3_000_000, 10, 2_000_000):
        assert source.read(file, offset, 1000) == CONTENT[offset : offset + 1000]
    assert len(proxy.ways.sent) == 2


def test_a_server_that_breaks_off_is_asked_again(proxy: Proxy) -> None:
    proxy.ways.breaks = 3
    assert read_in_order() == CONTENT
    proxy.ways.breaks = 99
    with pytest.raises(
        NetworkError, match=r"model/w cannot be read from http://127\.0\.0\.1:\d+: .*SLIPWAY_REGISTRY"
    ):
        read_in_order()


def test_a_busy_server_is_waited_for(proxy: Proxy) -> None:
    proxy.ways.busy = 2
    said: list[str] = []
    with added_listener(lambda _, line: said.append(line)):
        assert read_in_order() == CONTENT
    assert [line.endswith("is busy: it answered 503, asked again in 0 s") for line in said] == [True, True]


def test_a_file_that_is_shorter_than_listed_has_changed(proxy: Proxy) -> None:
    proxy.ways.short = True
    with pytest.raises(ModelError, match="model/w changed while it was read"):
        read_in_order()


def test_what_cannot_be_asked_for_is_one_line(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(SOURCE, endpoint=None)
    (file,) = source.list_files()
    with pytest.raises(NotFoundError, match="does not have this file"):
        source.read(file.model_copy(update={"path": "gone"}), 0, 1)
    monkeypatch.setenv("SLIPWAY_REGISTRY", "/srv/registry")
    with pytest.raises(WrongUseError, match="SLIPWAY_REGISTRY does not name one"):
        open_source(SOURCE, endpoint=None)
