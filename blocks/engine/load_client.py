"""A load generator for completions, chats, embeddings and scores: many clients in one thread, with little CPU time.

The engine shares its cores with these clients, so answers are not parsed token by token (`answer_stream.py`).
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from blocks.engine.answer_stream import AnswerStream
from blocks.engine.load_prompts import COMPLETIONS, Body, Pool, ask_in_tokens
from blocks.engine.whole_answer import WholeAnswer
from tasks.core.cancellation import current
from tasks.core.errors import EngineError, EngineHungError, EngineSlowError
from tasks.core.load import (
    Load,
    LoadFigures,
    OpenLoad,
    Prompts,
    Wait,
    closed_throughput,
    figures_of,
    longest_output,
    shortest_output,
)

_POLL_S = 0.02


@dataclass
class _Exchange(asyncio.Protocol):
    """One request on a connection of its own; times are seconds of the monotonic clock.

    In an open loop, `wanted` is when the request should have been sent. `heard` is when the last byte arrived.
    """

    request: bytes
    wanted: float = 0.0
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    transport: asyncio.Transport | None = None
    sent: float = field(default_factory=time.monotonic)
    heard: float = 0.0
    answer: AnswerStream | WholeAnswer = field(default_factory=AnswerStream)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.sent = time.monotonic()
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.heard = time.monotonic()
        self.answer.feed(data, self.heard)

    def connection_lost(self, _error: Exception | None) -> None:
        self.answer.end(self.heard)
        self.ended.set()

    def close(self) -> None:
        """Hang up; the engine drops a request whose answer is not read."""
        if self.transport is not None:
            self.transport.abort()

    @property
    def events(self) -> int:
        """Number of events with tokens in them."""
        return self.answer.events

    @property
    def done(self) -> bool:
        """Whether the answer is complete."""
        return self.answer.done

    @property
    def ttft_ms(self) -> float:
        """Time to the first token, from when the request should have been sent: a late start counts as waiting."""
        return (self.answer.first - (self.wanted or self.sent)) * 1000

    def check(self, address: str) -> None:
        """Raise `EngineError` unless this was a complete streamed answer with at least one token."""
        answer = self.answer
        if not answer.status:
            raise EngineError(f"{address} closed the connection without an answer")
        if b" 200 " not in answer.status + b" ":
            body = answer.tail.partition(b"\r\n\r\n")[2][:200].decode(errors="replace")
            raise EngineError(f"{address} answered {answer.status.decode(errors='replace')}: {body}")
        if answer.fault:
            raise EngineError(f"{address} broke off an answer with {answer.fault.decode(errors='replace')}")
        if not answer.done or not answer.tokens:
            raise EngineError(f"{address} broke off an answer after {answer.events} tokens")


class LoadClient:
    """Clients of one engine. Prompts are drawn from `pool`: ids of ordinary tokens, or words.

    Answers that are `whole` come in one piece, and are counted instead of tokens.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        pool: Pool,
        body: Body = ask_in_tokens,
        path: str = COMPLETIONS,
        *,
        whole: bool = False,
    ) -> None:
        parts = urlsplit(base_url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._host, self._port = parts.hostname, parts.port
        self.base_url = base_url
        self._path = path
        self._address = f"{base_url}{path}"
        self._model = model
        self._pool = pool
        self._body = body
        self._answer: Callable[[], AnswerStream | WholeAnswer] = WholeAnswer if whole else AnswerStream
        self._whole = whole

    def run(self, load: Load) -> LoadFigures:
        """Load the engine in a closed loop and measure.

        Raises `EngineError` if any request gets no complete answer, `EngineHungError` if one gets no byte for
        `load.silence_s`, `EngineSlowError` after `load.timeout_s`.
        """
        return asyncio.run(self._run(load))

    def run_open(self, load: OpenLoad) -> tuple[LoadFigures, tuple[Wait, ...]]:
        """Load the engine in an open loop and measure. Also returns how long each request waited.

        A request without a first token counts as having waited until the end. Raises the same errors as `run`; as
        requests may queue, the engine only counts as hung if no request gets a byte.
        """
        return asyncio.run(self._run_open(load))

    async def _run(self, load: Load) -> LoadFigures:
        exchanges: list[list[_Exchange]] = [[] for _ in range(load.clients)]

        async def client(number: int) -> None:
            for request in self.requests(load, number):
                exchanges[number].append(_Exchange(request, answer=self._answer()))
                await self._ask(exchanges[number][-1])

        def every() -> list[_Exchange]:
            return [one for own in exchanges for one in own]

        seconds = await self._drive(
            load,
            [asyncio.create_task(client(number)) for number in range(load.clients)],
            every,
            quiet=lambda now: max((now - max(one.heard, one.sent) for one in _pending(every())), default=0.0),
            over=lambda seconds: _enough(load, exchanges, seconds),
        )
        ratio = _tokens_per_event(every())
        throughput = closed_throughput(_answered(own, ratio) for own in exchanges if own)
        return _figures(every(), seconds, throughput, ratio, whole=self._whole)

    async def _run_open(self, load: OpenLoad) -> tuple[LoadFigures, tuple[Wait, ...]]:
        start = time.monotonic()
        times = load.send_times()
        exchanges: list[_Exchange] = []

        async def send(at: float) -> None:
            await asyncio.sleep(max(0.0, start + at - time.monotonic()))
            exchanges.append(_Exchange(next(requests), wanted=start + at, answer=self._answer()))
            await self._ask(exchanges[-1])

        requests = self.requests(load, -1)
        tasks = [asyncio.create_task(send(at)) for at in times]

        def quiet(now: float) -> float:
            """Seconds since the last byte of any answer: queued requests wait while others are answered."""
            pending = _pending(exchanges)
            heard = max((one.heard for one in exchanges), default=0.0)
            return now - max(heard, min(one.sent for one in pending)) if pending else 0.0

        seconds = await self._drive(
            load,
            tasks,
            lambda: exchanges,
            quiet=quiet,
            over=lambda seconds: all(task.done() for task in tasks) or seconds > times[-1] + load.drain_s,
        )
        waits = tuple(
            Wait(
                arrived=one.wanted - start,
                first=(one.answer.first or one.answer.last) - start if one.events or one.done else None,
                done=one.answer.last - start if one.done else None,
            )
            for one in sorted(exchanges, key=lambda one: one.wanted)
        )
        ratio = _tokens_per_event(exchanges)
        tokens = ratio * sum(exchange.events for exchange in exchanges)
        figures = _figures(
            exchanges, seconds, tokens / seconds, ratio, end=start + seconds, whole=self._whole
        )
        return figures, waits

    async def _drive(
        self,
        load: Prompts,
        tasks: Sequence[asyncio.Task[None]],
        exchanges: Callable[[], Sequence[_Exchange]],
        *,
        quiet: Callable[[float], float],
        over: Callable[[float], bool],
    ) -> float:
        """Let the tasks send until `over`; returns the seconds that this took. All connections are closed then."""
        start = time.monotonic()
        try:
            while not over(time.monotonic() - start):
                await asyncio.wait(tasks, timeout=_POLL_S, return_when=asyncio.FIRST_EXCEPTION)
                for ended in (task for task in tasks if task.done()):
                    await ended  # raises what went wrong
                current().check()
                now = time.monotonic()
                if quiet(now) > load.silence_s:
                    raise EngineHungError(f"{self._address} sent no byte for {load.silence_s:g} s")
                if now - start > load.timeout_s:
                    raise self._overdue(load, exchanges())
            return time.monotonic() - start
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for exchange in exchanges():
                exchange.close()

    def _overdue(self, load: Prompts, exchanges: Sequence[_Exchange]) -> EngineError:
        """The error after the time limit. An answer of bytes without a token is not just slow."""
        for one in _pending(exchanges):
            if one.heard and not one.events:
                return EngineError(
                    f"{self._address} streams chunks without a token: {one.answer.tail[-80:]!r}"
                )
        return EngineSlowError(f"{self._address} did not finish within {load.timeout_s:g} s")

    async def _ask(self, exchange: _Exchange) -> None:
        """Send a request and wait for the complete answer."""
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: exchange, self._host, self._port)
        except OSError as error:
            raise EngineError(f"{self._address} does not answer: {error}") from error
        await exchange.ended.wait()
        exchange.check(self._address)

    def requests(self, load: Prompts, number: int) -> Iterator[bytes]:
        """An endless series of prompts for client `number`. No two prompts are equal, so no cache can answer."""
        draw = random.Random(f"{load.seed} {number}")
        while True:
            yield self._request(load, draw)

    def _request(self, load: Prompts, draw: random.Random) -> bytes:
        prompt = draw.choices(self._pool, k=load.prompt_tokens)
        tokens = draw.randint(shortest_output(load.output_tokens), longest_output(load.output_tokens))
        body = self._body(self._model, prompt, tokens)
        text = json.dumps(body).encode()
        head = (
            f"POST {self._path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        )
        return head.encode() + text


def _pending(exchanges: Sequence[_Exchange]) -> list[_Exchange]:
    return [one for one in exchanges if not one.ended.is_set()]


def _enough(load: Load, exchanges: Sequence[Sequence[_Exchange]], seconds: float) -> bool:
    late = seconds >= load.max_s
    if late and not load.whole:
        return all(any(one.done or one.events > 1 for one in own) for own in exchanges)
    answered = [sum(one.done for one in own) for own in exchanges]
    return seconds >= load.min_s and min(answered) >= 1 and (late or sum(answered) >= load.min_requests)


def _tokens_per_event(exchanges: Sequence[_Exchange]) -> float:
    """Tokens per event, from the engine's own counts of complete answers.

    It is above 1 because a token that ends inside a character makes no event.
    """
    whole = [exchange for exchange in exchanges if exchange.events and exchange.done]
    events = sum(exchange.events for exchange in whole)
    return sum(exchange.answer.tokens for exchange in whole) / events if events else 1.0


def _answered(own: Sequence[_Exchange], ratio: float) -> tuple[float, float]:
    """Tokens of one client's complete answers, and the seconds until the last of them.

    For a client without a complete answer, the same of what it has received.
    """
    counted = [one for one in own if one.done] or [one for one in own if one.events]
    last = max((one.answer.last for one in counted), default=own[0].sent)
    tokens = sum(one.answer.tokens if one.done else ratio * one.events for one in counted)
    return tokens, last - own[0].sent


def _figures(
    exchanges: Sequence[_Exchange],
    seconds: float,
    tokens_per_s: float,
    ratio: float,
    *,
    end: float | None = None,
    whole: bool = False,
) -> LoadFigures:
    """Figures of a run. If `end` is given, requests without a token count as having waited until then."""
    begun = [exchange for exchange in exchanges if exchange.events]
    ttft = [exchange.ttft_ms for exchange in begun]
    if end is not None:
        waiting = [exchange for exchange in exchanges if not exchange.events and not exchange.done]
        ttft += [(end - exchange.wanted) * 1000 for exchange in waiting]
    # In an open loop the answers that were cut off are the slowest ones, in a closed loop only the last ones.
    counted = begun if end is not None else [one for one in begun if one.done] or begun
    tpot = [found for one in counted if (found := one.answer.tpot_ms(ratio)) is not None]
    if not whole and all(one.events < 2 for one in begun):
        raise EngineError("the engine does not stream tokens: each answer came in one piece")
    return figures_of(
        requests=len(begun),
        seconds=seconds,
        tokens_per_s=tokens_per_s,
        ttft_ms=ttft,
        tpot_ms=tpot,
        whole=whole,
    )
