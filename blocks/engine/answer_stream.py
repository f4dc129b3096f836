"""The timing of a streamed completion, read from raw bytes: server-sent events of OpenAI's interface.

The engine shares its cores with the clients, so events are not parsed as JSON one by one: patterns count those of a
whole read at once. Source of the format: https://html.spec.whatwg.org/multipage/server-sent-events.html, and the
answers of llama.cpp, vLLM and transformers serve.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKEN = re.compile(
    rb'^data:[^\n]*"(?:text|content|reasoning|reasoning_content|arguments)":\s*"(?!")', re.MULTILINE
)
"""An event that contains text. The first of a chat contains a role, the last a reason, and either's text is empty."""

_BLANK = re.compile(rb'^data:[^\n]*"(?:text|content)":\s*"', re.MULTILINE)
"""An event that could hold text: of a token without any, such as a special one, its text is empty."""

_WHOLE = re.compile(
    rb"^data: ?\[DONE\]"
    rb'|^data:[^\n]*"finish_reason":\s*"(?:length|stop)"'
    rb'|^data:[^\n]*"choices":\s*\[\],[^\n]*"completion_tokens"',
    re.MULTILINE,
)
"""What only complete answers contain: the end mark, the reason for the end, or the count after the last token."""

_FAULT = re.compile(rb'^data: ?(\{\s*"(?:error"|object":\s*"error").{0,200})', re.MULTILINE)
_USAGE = re.compile(rb'"completion_tokens":\s*(\d+)')
_KEEP = 4096
"""Bytes of an answer's end that are kept for messages."""

FASTEST_MS = 0.25
"""Between two tokens: less is how fast a buffer is emptied, and no step of an engine."""


@dataclass
class _Tally:
    """Events of one kind: how many, how many of them in the first read, in how many reads, and when."""

    events: int = 0
    in_first_read: int = 0
    reads: int = 0
    first: float = 0.0
    last: float = 0.0

    def add(self, events: int, at: float) -> None:
        if not events:
            return
        if not self.events:
            self.first, self.in_first_read = at, events
        self.events += events
        self.reads += 1
        self.last = at


class AnswerStream:
    """One answer as it comes in; times are whatever clock `feed` is given, in seconds."""

    def __init__(self) -> None:
        self.status = b""
        self.tail = b""
        self.done_at = 0.0
        self.fault: bytes | None = None
        self._counted: int | None = None
        self._rest = b""
        self._tokens = _Tally()
        self._blanks = _Tally()

    def feed(self, data: bytes, at: float) -> None:
        """Add the bytes of one read. An event counts once its line is complete."""
        self.status = self.status or data[:200].partition(b"\r\n")[0]
        self.tail = (self.tail + data)[-_KEEP:]
        lines, newline, rest = (self._rest + data).rpartition(b"\n")
        self._rest = rest
        if newline:
            self._read(lines, at)

    def end(self, at: float) -> None:
        """The connection is closed: what is left counts as a line."""
        self._read(self._rest, at)
        self._rest = b""

    def _read(self, lines: bytes, at: float) -> None:
        tokens = len(_TOKEN.findall(lines))
        self._tokens.add(tokens, at)
        self._blanks.add(len(_BLANK.findall(lines)), at)
        if not self.done_at and _WHOLE.search(lines):
            self.done_at = at
        if self.fault is None and (found := _FAULT.search(lines)):
            self.fault = found[1]
        if counts := _USAGE.findall(lines):
            self._counted = int(counts[-1])

    @property
    def _seen(self) -> _Tally:
        """The events that hold tokens; of a whole answer without any text those without, if they are enough."""
        bare = self.done and not self._tokens.events and (self._counted or 0) > 0
        return self._blanks if bare and self._blanks.events >= (self._counted or 0) else self._tokens

    @property
    def done(self) -> bool:
        """Whether the answer is complete."""
        return self.done_at > 0

    @property
    def events(self) -> int:
        """Number of events with tokens: none in a complete answer of half characters, which are not text."""
        return self._seen.events

    @property
    def first(self) -> float:
        """When the first token came; 0 before."""
        return self._seen.first

    @property
    def last(self) -> float:
        """When the last token came, or the end of an answer without text; 0 before."""
        return self._seen.last or self.done_at

    @property
    def tokens(self) -> int:
        """Output tokens as the engine counts them; if it does not, the number of events."""
        return self.events if self._counted is None else self._counted

    def tpot_ms(self, ratio: float) -> float | None:
        """Time per token after the first; `ratio` tokens make one event. None if it was not measured.

        The first event holds the first token, and one more event of the same read as many as any other. What came in
        one piece tells nothing of the time between tokens.
        """
        seen = self._seen
        tokens = self.tokens if self.done else seen.events * ratio
        after_first = tokens - 1 - (seen.in_first_read - 1) * ratio
        if seen.reads < 2 or after_first <= 0:
            return None
        found = (seen.last - seen.first) * 1000 / after_first
        return found if found >= FASTEST_MS else None
