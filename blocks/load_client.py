"""A load generator for `/v1/completions`: many streaming clients in one thread, at little cost to the processor.

The engine shares its cores with these clients, so answers are not parsed token by token: events are counted in
the raw bytes, and only the last one, which carries the engine's own token count, is read.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from blocks.completion_dialects import TOKENS, Dialect
from tasks.core.cancellation import current
from tasks.core.errors import EngineError
from tasks.core.load import Load, LoadFigures, longest_output

_EVENT = b"\ndata: {"
_USAGE = re.compile(rb'"completion_tokens":\s*(\d+)')
_KEEP = 4096
"""Bytes of an answer's end that are kept: the usage is in them."""
_POLL_S = 0.02


@dataclass
class _Exchange(asyncio.Protocol):
    """One request on a connection of its own; times are monotonic seconds."""

    request: bytes
    mark: bytes
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    transport: asyncio.Transport | None = None
    sent: float = 0.0
    first: float = 0.0
    last: float = 0.0
    events: int = 0
    tail: bytes = b""
    status: bytes = b""
    done: bool = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.sent = time.monotonic()
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.status = self.status or data[:200].partition(b"\r\n")[0]
        fresh = self.tail[-len(_EVENT) + 1 :] + data
        if count := fresh.count(_EVENT):
            self.last = time.monotonic()
            self.first = self.first or self.last
            self.events += count
        self.tail = (self.tail + data)[-_KEEP:]
        self.done = self.done or self.mark in self.tail

    def close(self) -> None:
        """Hang up; the engine drops a request that nobody reads."""
        if self.transport is not None:
            self.transport.abort()

    def tpot_ms(self, ratio: float) -> float:
        """Time per token after the first; `ratio` tokens make one event."""
        return (self.last - self.first) * 1000 / ((self.events - 1) * ratio)

    def connection_lost(self, _error: Exception | None) -> None:
        self.ended.set()

    @property
    def tokens(self) -> int:
        """Output tokens by the engine's own count."""
        counts = _USAGE.findall(self.tail)
        return int(counts[-1]) if counts else self.events

    def check(self, address: str) -> None:
        """Raise `EngineError` unless this was a whole streamed answer with at least one token."""
        if not self.status:
            raise EngineError(f"{address} closed the connection without an answer")
        if b" 200 " not in self.status + b" ":
            body = self.tail.partition(b"\r\n\r\n")[2][:200].decode(errors="replace")
            raise EngineError(f"{address} answered {self.status.decode(errors='replace')}: {body}")
        if not self.done or not self.events:
            raise EngineError(f"{address} broke off an answer after {self.events} tokens")


class LoadClient:
    """Clients of one engine. `pool` are ids of ordinary tokens, or words, from which prompts are drawn."""

    def __init__(
        self, base_url: str, model: str, pool: Sequence[int] | Sequence[str], dialect: Dialect = TOKENS
    ) -> None:
        parts = urlsplit(base_url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._host, self._port = parts.hostname, parts.port
        self._address = f"{base_url}/v1/completions"
        self._model = model
        self._pool = pool
        self._dialect = dialect

    def run(self, load: Load) -> LoadFigures:
        """Load the engine and measure. Raises `EngineError` for any request that is not answered whole."""
        return asyncio.run(self._run(load))

    async def _run(self, load: Load) -> LoadFigures:
        start = time.monotonic()
        exchanges: list[list[_Exchange]] = [[] for _ in range(load.clients)]

        async def client(number: int) -> None:
            for request in self.requests(load, number):
                exchange = await self._ask(request)
                exchanges[number].append(exchange)
                await exchange.ended.wait()
                exchange.check(self._address)

        clients = [asyncio.create_task(client(number)) for number in range(load.clients)]
        try:
            while not _enough(load, exchanges, time.monotonic() - start):
                await asyncio.wait(clients, timeout=_POLL_S, return_when=asyncio.FIRST_EXCEPTION)
                for ended in (task for task in clients if task.done()):
                    await ended  # raises what went wrong
                current().check()
                if time.monotonic() - start > load.timeout_s:
                    raise EngineError(f"{self._address} did not answer within {load.timeout_s:.0f} s")
            return _figures([one for own in exchanges for one in own], time.monotonic() - start)
        finally:
            for task in clients:
                task.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
            for exchange in (one for own in exchanges for one in own):
                exchange.close()

    async def _ask(self, request: bytes) -> _Exchange:
        exchange = _Exchange(request, self._dialect.done)
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: exchange, self._host, self._port)
        except OSError as error:
            raise EngineError(f"{self._address} does not answer: {error}") from error
        return exchange

    def requests(self, load: Load, number: int) -> Iterator[bytes]:
        """What client `number` asks, without end: no two prompts of a load alike, so that no cache answers."""
        draw = random.Random(f"{load.seed} {number}")
        while True:
            yield self._request(load, draw)

    def _request(self, load: Load, draw: random.Random) -> bytes:
        prompt = draw.choices(self._pool, k=load.prompt_tokens)
        shortest = max(2, 2 * load.output_tokens - longest_output(load.output_tokens))
        tokens = draw.randint(shortest, longest_output(load.output_tokens))
        body = self._dialect.body(self._model, prompt, tokens)
        text = json.dumps(body).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        )
        return head.encode() + text


def _enough(load: Load, exchanges: Sequence[Sequence[_Exchange]], seconds: float) -> bool:
    if seconds < load.min_s:
        return False
    if seconds >= load.max_s:
        return all(any(one.events > 1 for one in own) for own in exchanges)
    answered = [sum(one.done for one in own) for own in exchanges]
    return min(answered) >= 1 and sum(answered) >= load.min_requests


def _figures(exchanges: Sequence[_Exchange], seconds: float) -> LoadFigures:
    begun = [exchange for exchange in exchanges if exchange.events]
    whole = [exchange for exchange in begun if exchange.done]
    # A token that ends inside a character makes no event: the engine's counts of whole answers say how many do.
    events = sum(exchange.events for exchange in whole)
    ratio = sum(exchange.tokens for exchange in whole) / events if events else 1.0
    ttft = [(exchange.first - exchange.sent) * 1000 for exchange in begun]
    tpot = [exchange.tpot_ms(ratio) for exchange in begun if exchange.events > 1]
    if not tpot:
        raise EngineError("the engine streams no tokens: each answer came in one piece")
    return LoadFigures(
        requests=len(begun),
        seconds=seconds,
        tokens_per_s=ratio * sum(exchange.events for exchange in begun) / seconds,
        ttft_p50_ms=percentile(ttft, 0.5),
        ttft_p95_ms=percentile(ttft, 0.95),
        tpot_p50_ms=percentile(tpot, 0.5),
        tpot_p95_ms=percentile(tpot, 0.95),
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed: one that was measured."""
    ranked = sorted(values)
    return ranked[max(0, -int(-share * len(ranked) // 1) - 1)]
