"""Where HTTP/1.1 messages begin and end (RFC 9112, section 6). Nothing else is looked at."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

_LONGEST_LINE = 8192
_HEX = re.compile(rb"[0-9a-fA-F]{1,16}")
_DIGITS = re.compile(rb"[0-9]{1,18}")
_REQUEST = re.compile(rb"([!-~]+) \S+ HTTP/1\.([01])")
_ANSWER = re.compile(rb"HTTP/1\.([01]) ([0-9]{3})(?: .*)?")


class BadMessageError(Exception):
    """Bytes that are no HTTP/1.1 message, or one that ends too early."""


class Framing(Protocol):
    """Counts a body's bytes as they pass."""

    done: bool

    def feed(self, data: bytes) -> int:
        """How many of these bytes belong to the body."""


class Sized:
    """A body of a known length."""

    def __init__(self, size_bytes: int) -> None:
        self._left = size_bytes
        self.done = size_bytes == 0

    def feed(self, data: bytes) -> int:
        used = min(len(data), self._left)
        self._left -= used
        self.done = self._left == 0
        return used


class UntilClose:
    """A body that ends with its connection."""

    done = False

    def feed(self, data: bytes) -> int:
        return len(data)


class Chunked:
    """A body in chunks, with its trailer."""

    def __init__(self) -> None:
        self.done = False
        self._line = b""
        self._left = 0
        self._in_trailer = False

    def feed(self, data: bytes) -> int:
        at = 0
        while at < len(data) and not self.done:
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            end = data.find(b"\n", at)
            self._line += data[at : end if end >= 0 else len(data)]
            if len(self._line) > _LONGEST_LINE:
                raise BadMessageError("a chunk's header is too long")
            if end < 0:
                return len(data)
            at = end + 1
            line, self._line = self._line.strip(), b""
            self._on_line(line)
        return at

    def _on_line(self, line: bytes) -> None:
        if self._in_trailer:
            self.done = not line
            return
        text = line.partition(b";")[0].strip()
        if not _HEX.fullmatch(text):
            raise BadMessageError(f"a chunk's size is {text[:40]!r}")
        size = int(text, 16)
        self._in_trailer = size == 0
        self._left = size + len(b"\r\n") if size else 0


@dataclass(frozen=True)
class Request:
    """Of a request: its method, its body, and whether the client wants to send more afterwards."""

    method: bytes
    body: Framing
    keeps_alive: bool


@dataclass(frozen=True)
class Answer:
    """Of an answer: its status, its body, and whether the connection can be used afterwards."""

    status: int
    body: Framing
    keeps_alive: bool


def parse_request(head: bytes) -> Request:
    """The request that begins with `head` (up to and with the empty line). Raises `BadMessageError`."""
    first, headers = _split(head)
    match = _REQUEST.fullmatch(first)
    if not match:
        raise BadMessageError(f"no HTTP/1.1 request: {first[:80]!r}")
    body: Framing
    if codings := headers.get(b"transfer-encoding"):
        if codings.split(b",")[-1].strip().lower() != b"chunked":
            raise BadMessageError(f"a request in transfer encoding {codings[:40]!r}")
        body = Chunked()
    else:
        body = Sized(_length(headers) or 0)
    return Request(match[1], body, _keeps_alive(match[2], headers))


def parse_answer(head: bytes, method: bytes) -> Answer:
    """The answer to a request of `method` that begins with `head`. Raises `BadMessageError`."""
    first, headers = _split(head)
    match = _ANSWER.fullmatch(first)
    if not match:
        raise BadMessageError(f"no HTTP/1.1 answer: {first[:80]!r}")
    status = int(match[2])
    body: Framing
    if method == b"HEAD" or status < 200 or status in (204, 304):
        body = Sized(0)
    elif codings := headers.get(b"transfer-encoding"):
        body = Chunked() if codings.split(b",")[-1].strip().lower() == b"chunked" else UntilClose()
    else:
        length = _length(headers)
        body = UntilClose() if length is None else Sized(length)
    keeps_alive = _keeps_alive(match[1], headers) and not isinstance(body, UntilClose)
    return Answer(status, body, keeps_alive)


def _split(head: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """First line and headers; names in lower case, values of a repeated name joined by commas."""
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    headers: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not name or name != name.strip():
            raise BadMessageError(f"no header: {line[:80]!r}")
        key = name.lower()
        headers[key] = headers[key] + b"," + value.strip() if key in headers else value.strip()
    return first, headers


def _length(headers: dict[bytes, bytes]) -> int | None:
    if (text := headers.get(b"content-length")) is None:
        return None
    lengths = {length.strip() for length in text.split(b",")}
    if len(lengths) != 1 or not _DIGITS.fullmatch(next(iter(lengths))):
        raise BadMessageError(f"a content length of {text[:40]!r}")
    return int(lengths.pop())


def _keeps_alive(minor_version: bytes, headers: dict[bytes, bytes]) -> bool:
    options = {option.strip().lower() for option in headers.get(b"connection", b"").split(b",")}
    return b"close" not in options and (minor_version == b"1" or b"keep-alive" in options)
