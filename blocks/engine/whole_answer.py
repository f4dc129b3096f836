"""One answer that comes in one piece, embeddings or scores, read from raw bytes. It has the interface of
`answer_stream.AnswerStream`, so that the same clients time it.

The engine shares its cores with the clients, so an answer is not parsed as JSON: patterns look for its numbers.
"""

from __future__ import annotations

import re

_NUMBERS = re.compile(rb'"embedding":\s*\[[-+0-9.eE,\s]+\]|"relevance_score":\s*-?[0-9]')
_LENGTH = re.compile(rb"\r\ncontent-length:\s*([0-9]+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:\s*chunked", re.IGNORECASE)
_LAST_CHUNK = b"0\r\n\r\n"
_KEEP = 4096


class WholeAnswer:
    """One answer as it comes in; times are whatever clock `feed` is given, in seconds. It counts as one token."""

    def __init__(self) -> None:
        self.status = b""
        self.fault: bytes | None = None
        self.done = False
        self.last = 0.0
        self._read = bytearray()

    def feed(self, data: bytes, at: float) -> None:
        """Add the bytes of one read."""
        self._read += data
        self.status = self.status or data[:200].partition(b"\r\n")[0]
        self.last = at

    def end(self, at: float) -> None:
        """The connection is closed: the answer is complete if all of it is there, and it has numbers."""
        head, _, body = bytes(self._read).partition(b"\r\n\r\n")
        if _CHUNKED.search(head):
            whole = body.endswith(_LAST_CHUNK)
            body = _without_chunks(body) if whole else body
        else:
            length = _LENGTH.search(head)
            whole = length is not None and len(body) == int(length[1])
        self.done = whole and _NUMBERS.search(body) is not None
        if whole and not self.done and b" 200" in self.status:
            self.fault = body[:200] or b"nothing"

    @property
    def tail(self) -> bytes:
        """The end of what was read."""
        return bytes(self._read[-_KEEP:])

    @property
    def events(self) -> int:
        """1 for a complete answer."""
        return int(self.done)

    tokens = events

    @property
    def first(self) -> float:
        """When it was complete."""
        return self.last

    def tpot_ms(self, _ratio: float) -> float | None:
        """None: there are no tokens after the first."""
        return None


def _without_chunks(body: bytes) -> bytes:
    """The content of a body in chunks; nothing of a damaged one."""
    found, rest = [], body
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        try:
            length = int(size.partition(b";")[0], 16)
        except ValueError:
            return b""
        found.append(rest[:length])
        rest = rest[length + 2 :]
    return b"".join(found)
