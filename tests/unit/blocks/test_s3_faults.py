"""S3 servers and proxies that deviate: what is followed, what is waited for, and what is told in one line."""

from __future__ import annotations

import base64
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from faulty_s3 import FaultyS3, faulty_s3

from blocks.storage.sources import open_source
from tasks.core.direct_io import ring
from tasks.core.errors import (
    AccessError,
    DeadlineError,
    ModelError,
    NetworkError,
    NotFoundError,
    SlipwayError,
)

pytestmark = pytest.mark.slow

WEIGHTS = bytes(range(256)) * 40


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """A server with a model of three files below `m`."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("blocks.storage.ranges._SLOW_DOWN_PAUSE_S", "blocks.storage.ranges._PAUSE_S"):
        monkeypatch.setattr(name, 0.0)
    with faulty_s3() as server:
        server.upload({"config.json": b"{}", "empty.txt": b"", "w": WEIGHTS})
        yield server


def read_all(s3: FaultyS3, prefix: str = "m") -> dict[str, bytes]:
    """All files, read in both ways: as small ones and as ranges."""
    source = open_source(f"s3://bucket/{prefix}", endpoint=s3.endpoint)
    found = {}
    for file in source.list_files():
        size = file.size_bytes
        small = source.read(file, 1, size - 1) if size > 1 else b""
        (buffer,) = ring(1, max(size, 1))
        if size > 1:
            source.read_into(file, 1, size - 1, buffer, 0, len)
            assert buffer.view[: size - 1] == small
        found[file.path] = small
    return found


GOOD = {"config.json": b"}", "empty.txt": b"", "w": WEIGHTS[1:]}


@pytest.mark.parametrize(
    "faults",
    [
        {},
        {"region": "eu-central-1", "region_status": 400},
        {"region": "eu-central-1", "region_status": 301},
        {"slow_down": 9},
        {"slow_down_ranges": 9},
        {"etag": None},
        {"etag": ""},
        {"etag": "{}"},
        {"etag": 'W/"{}"'},
        {"refuses_conditions": True},
        {"encodes_keys": False},
        {"ignores_delimiter": True},
    ],
    ids=str,
)
def test_a_model_is_read_in_spite_of(s3: FaultyS3, faults: dict[str, Any]) -> None:
    s3.deviate(**faults)
    assert read_all(s3) == GOOD


@pytest.mark.parametrize("prefix", ["a+b ü%20#1/m?x", "a&b=c", "100%", "~tilde", "a'b\"c<d>"])
def test_prefixes_and_keys_mean_what_they_spell(s3: FaultyS3, prefix: str) -> None:
    s3.objects.clear()
    s3.upload({"a+b %20?#.json": b"{}", "größe.txt": b"ab"}, prefix)
    assert read_all(s3, prefix) == {"a+b %20?#.json": b"}", "größe.txt": b"b"}


def test_markers_of_folders_and_thousands_of_objects_do_not_disturb(s3: FaultyS3) -> None:
    s3.upload({"": b"", "sub/": b"", "nested/x": b"x", **{f"log-{n:05}": b"xy" for n in range(2500)}})
    s3.objects["m_$folder$"] = b""
    assert len(open_source("s3://bucket/m", endpoint=s3.endpoint).list_files()) == 2503


@pytest.mark.parametrize(
    ("faults", "kind", "told"),
    [
        (
            {"page": "<html>hello</html>"},
            NetworkError,
            "s3://bucket/m is not on an S3 server: the answer is not S3's XML",
        ),
        (
            {"page": "hello"},
            NetworkError,
            "s3://bucket/m is not on an S3 server: the answer is not S3's XML",
        ),
        (
            {"error": (403, "RequestTimeTooSkewed"), "clock_offset_s": 1800.0},
            AccessError,
            "s3://bucket/m refused the request: the clock of this host is 30 minutes behind the server's",
        ),
        (
            {"error": (403, "RequestTimeTooSkewed"), "clock_offset_s": -7200.0},
            AccessError,
            "s3://bucket/m refused the request: the clock of this host is 120 minutes ahead of the server's",
        ),
        (
            {"error": (403, "RequestTimeTooSkewed")},
            AccessError,
            "s3://bucket/m refused the request: the clock of this host differs too much from the server's",
        ),
        (
            {"error": (400, "ExpiredToken")},
            AccessError,
            "s3://bucket/m refused the credentials (ExpiredToken)",
        ),
        ({"error": (404, "NoSuchBucket")}, NotFoundError, "s3://bucket/m does not exist (NoSuchBucket)"),
        ({"error": (503, "SlowDown")}, NetworkError, "s3://bucket/m answered SlowDown: "),
        ({"error": (418, "x" * 5000)}, NetworkError, "s3://bucket/m answered xxx"),
        ({"ignores_ranges": True}, NetworkError, "the server ignores ranges"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_bounded_line(
    s3: FaultyS3, faults: dict[str, Any], kind: type[SlipwayError], told: str
) -> None:
    s3.deviate(**faults)
    with pytest.raises(kind) as error:
        read_all(s3)
    assert told in error.value.what
    assert error.value.fix
    assert len(str(error.value)) < 600
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("faults", "kind", "told"),
    [
        ({"slow_down_ranges": 1000}, NetworkError, "s3://bucket/m/w cannot be reached: it answered 503"),
        (
            {"error": (403, "RequestTimeTooSkewed"), "clock_offset_s": 1800.0},
            AccessError,
            "s3://bucket/m/w refused the request: the clock of this host is 30 minutes behind",
        ),
        (
            {"ignores_ranges": True},
            NetworkError,
            "the server ignores ranges: it sends all of s3://bucket/m/w",
        ),
        ({"error": (407, "x")}, AccessError, "the proxy requires user and password (407)"),
    ],
)
def test_long_ranges_that_cannot_be_read_are_told_in_one_line(
    s3: FaultyS3,
    faults: dict[str, Any],
    kind: type[SlipwayError],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = open_source("s3://bucket/m", endpoint=s3.endpoint)
    file = source.list_files()[-1]
    s3.deviate(**faults)
    monkeypatch.setattr("blocks.storage.s3_errors._PATIENCE_S", 0.05)
    (buffer,) = ring(1, 100)
    with pytest.raises(kind) as error:
        source.read_into(file, 1, 50, buffer, 0, len)
    assert told in error.value.what


@pytest.mark.parametrize("etag", ['"{}"', "{}"])
@pytest.mark.parametrize("refuses", [True, False])
def test_an_object_that_is_replaced_is_seen_also_without_conditions(
    s3: FaultyS3, etag: str, refuses: bool
) -> None:
    s3.deviate(etag=etag, refuses_conditions=refuses)
    source = open_source("s3://bucket/m", endpoint=s3.endpoint)
    file = source.list_files()[-1]
    s3.objects["m/w"] = WEIGHTS[::-1]
    (buffer,) = ring(1, 100)
    for read in (lambda: source.read(file, 1, 5), lambda: source.read_into(file, 1, 50, buffer, 0, len)):
        with pytest.raises(ModelError, match="changed while it was read"):
            read()


def test_a_server_that_sends_a_byte_now_and_then_is_left(
    s3: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source("s3://bucket/m", endpoint=s3.endpoint)
    file = source.list_files()[-1]
    s3.deviate(drips=True)
    monkeypatch.setattr("blocks.storage.s3._DEADLINE_S", 0.2)
    monkeypatch.setattr("blocks.storage.ranges._STALLED_S", 0.1)
    (buffer,) = ring(1, len(WEIGHTS))
    with pytest.raises(DeadlineError, match=r"s3://bucket/m/w .*did not answer in time"):
        source.read(file, 0, len(WEIGHTS))
    with pytest.raises(DeadlineError, match=r"s3://bucket/m .*did not answer in time"):
        source.list_files()
    with pytest.raises(NetworkError, match="s3://bucket/m/w cannot be reached: "):
        source.read_into(file, 0, len(WEIGHTS), buffer, 0, len)


class Proxy(BaseHTTPRequestHandler):
    """Forwards for `u` with the password `p@ss`."""

    def do_GET(self) -> None:
        if self.headers["Proxy-Authorization"] != "Basic " + base64.b64encode(b"u:p@ss").decode():
            self.send_response(407)
            self.send_header("Proxy-Authenticate", "Basic")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        headers = {name: value for name, value in self.headers.items() if not name.startswith("Proxy")}
        wanted = urllib.request.Request(self.path, headers=headers)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(wanted) as answer:
            body = answer.read()
            self.send_response(answer.status)
            for name in ("ETag", "Content-Range"):
                if answer.headers[name]:
                    self.send_header(name, answer.headers[name])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_proxy_that_wants_a_password_gets_it(
    s3: FaultyS3, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://u:p%40ss@{proxy}")
    assert read_all(s3) == GOOD


def test_a_proxy_that_refuses_is_named_without_its_password(
    s3: FaultyS3, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://u:TopSecret1@{proxy}")
    with pytest.raises(AccessError, match=r"the proxy requires user and password \(407\)") as error:
        read_all(s3)
    assert "TopSecret1" not in f"{error.value}{error.value.detail}"


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN"])
def test_a_token_with_a_line_break_is_not_repeated(
    s3: FaultyS3, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "TopSecret1\nTopSecret2")
    with pytest.raises(AccessError, match="contain a character that a request cannot carry") as error:
        read_all(s3)
    assert "TopSecret" not in str(error.value)
