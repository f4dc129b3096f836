"""The public port of a service: passes requests to the engine that serves at that moment.

Routing is by request, not by connection: each request gets its own connection to the engine, so a client that
keeps its connection alive over a switch is served by the new engine from its next request on, the old engine
has nothing left once its requests are answered, and no request meets a connection that an engine is just
closing. Messages pass byte for byte as they come; nothing is held back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterable, Iterator
from typing import SupportsIndex

from tasks.rollout.daemon.messages import (
    Answer,
    BadMessageError,
    Framing,
    Request,
    UntilClose,
    parse_answer,
    parse_request,
)

BLOCK_BYTES = 1 << 16
LONGEST_HEAD_BYTES = 1 << 16
IDLE_S = 300.0
"""How long a client may keep a connection without a request on it."""
GOODBYE_S = 2.0
_BEGIN_S = 0.01
"""For connections that the loop has accepted, and that have not begun."""
_LAST_REQUESTS_S = 0.25
"""For a request that a client sends on a kept connection while the service ends: it gets its 503, not a reset."""


class Backend:
    """A running engine's private address, how many requests it works on, and how often it was heard of."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.open_requests = 0
        self.heard = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Count one request for as long as the block runs."""
        self.open_requests += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.open_requests -= 1
            if not self.open_requests:
                self._idle.set()

    async def drained(self, timeout_s: float) -> bool:
        """Wait until no request is open; whether that was so within the time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True


class Source(asyncio.StreamReader):
    """What one side sends: bytes read too far can be given back, and the end is noticed without reading."""

    def __init__(self, backend: Backend | None = None) -> None:
        super().__init__(limit=BLOCK_BYTES)
        self.ended = asyncio.Event()
        self._backend = backend
        self._held = b""

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        if self._backend is not None:
            self._backend.heard += 1
        super().feed_data(data)

    def feed_eof(self) -> None:
        self.ended.set()
        super().feed_eof()

    def set_exception(self, exc: Exception) -> None:
        self.ended.set()
        super().set_exception(exc)

    async def head(self) -> bytes | None:
        """Bytes up to and with the first empty line; None if the other side has nothing more to say."""
        while (end := self._held.find(b"\r\n\r\n")) < 0:
            if len(self._held) > LONGEST_HEAD_BYTES:
                raise BadMessageError("the message's head is too long")
            more = await self.read(BLOCK_BYTES)
            if not more:
                if self._held.strip():
                    raise BadMessageError("the connection ended inside a message's head")
                return None
            # Some clients send an empty line after a body; RFC 9112 lets servers skip it.
            self._held = (self._held + more).lstrip(b"\r\n")
        head, self._held = self._held[: end + 4], self._held[end + 4 :]
        return head

    async def some(self) -> bytes:
        """The next bytes; none at the end."""
        if self._held:
            data, self._held = self._held, b""
            return data
        return await self.read(BLOCK_BYTES)

    def give_back(self, data: bytes) -> None:
        """Have `data` read again."""
        self._held = data + self._held


class Forwarder:
    """Listens for a service's clients. `backend` is who gets the next request; None answers 503."""

    def __init__(self) -> None:
        self.backend: Backend | None = None
        self._servers: dict[tuple[str, int], asyncio.Server] = {}
        self._listeners: dict[tuple[str, int], socket.socket] = {}
        self._clients: set[asyncio.Task[None]] = set()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it listens."""
        return list(self._servers)

    async def listen(self, host: str, port: int) -> int:
        """Listen there too; the port, chosen by the kernel if 0. Raises `OSError` if it is taken."""
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            server = await asyncio.get_running_loop().create_server(
                self._protocol, sock=listener, backlog=1024
            )
        except OSError:
            listener.close()
            raise
        bound: int = listener.getsockname()[1]
        self._servers[host, bound] = server
        self._listeners[host, bound] = listener
        return bound

    def unlisten(self, host: str, port: int) -> None:
        """Accept no more connections there; those that exist stay."""
        self._listeners.pop((host, port), None)
        if server := self._servers.pop((host, port), None):
            server.close()

    async def retire(self, host: str, port: int) -> None:
        """The same for an address with clients: who waits to be accepted is accepted first, not reset."""
        if (listener := self._listeners.get((host, port))) is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener)  # from here on nobody else accepts
            with contextlib.suppress(BlockingIOError):
                while True:
                    await loop.connect_accepted_socket(self._protocol, _accept(listener))
        self.unlisten(host, port)
        await asyncio.sleep(_BEGIN_S)

    async def close(self) -> None:
        """Accept nothing more, answer requests that are on their way, and hang up."""
        for host, port in self.addresses:
            await self.retire(host, port)
        self.backend = None
        if self._clients:
            await asyncio.wait(self._clients, timeout=_LAST_REQUESTS_S)
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    def _protocol(self) -> asyncio.StreamReaderProtocol:
        source = Source()

        def begin(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.get_running_loop().create_task(self._serve(source, writer))
            self._clients.add(task)
            task.add_done_callback(self._clients.discard)

        return asyncio.StreamReaderProtocol(source, begin)

    async def _serve(self, client: Source, writer: asyncio.StreamWriter) -> None:
        """All requests of one client's connection, one after the other."""
        try:
            while True:
                async with asyncio.timeout(IDLE_S):
                    head = await client.head()
                if head is None or not await self._exchange(head, client, writer):
                    break
            await _hang_up(client, writer)
        except BadMessageError as error:
            await _answer(client, writer, "400 Bad Request", str(error))
        except (OSError, TimeoutError):
            writer.transport.abort()
        finally:
            writer.close()

    async def _exchange(self, head: bytes, client: Source, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection can carry another."""
        request = parse_request(head)
        backend = self.backend
        if backend is None:
            return await _answer(client, writer, "503 Service Unavailable", "no engine is running")
        with backend.request():
            try:
                engine, to_engine = await _connect(backend)
            except OSError:
                return await _answer(client, writer, "503 Service Unavailable", "the engine is not listening")
            try:
                return await _relay(head, request, client, writer, engine, to_engine)
            finally:
                to_engine.close()


def _accept(listener: socket.socket) -> socket.socket:
    """Raises `BlockingIOError` if nobody waits."""
    connection, _ = listener.accept()
    connection.setblocking(False)
    return connection


async def _connect(backend: Backend) -> tuple[Source, asyncio.StreamWriter]:
    source = Source(backend)
    loop = asyncio.get_running_loop()
    protocol = asyncio.StreamReaderProtocol(source)
    transport, _ = await loop.create_connection(lambda: protocol, backend.host, backend.port)
    return source, asyncio.StreamWriter(transport, protocol, source, loop)


async def _relay(
    head: bytes,
    request: Request,
    client: Source,
    writer: asyncio.StreamWriter,
    engine: Source,
    to_engine: asyncio.StreamWriter,
) -> bool:
    to_engine.write(head)
    sending = asyncio.create_task(_send(client, to_engine, request.body))
    leaving = asyncio.create_task(_pass_on_end(client, to_engine))
    try:
        answer = await _relay_answer(request.method, client, writer, engine, to_engine)
    finally:
        sent = sending.done()
        for task in (sending, leaving):
            task.cancel()
        await asyncio.gather(sending, leaving, return_exceptions=True)
    # An engine may answer before it has read all of the body; what is left of it is no new request.
    return answer is not None and answer.keeps_alive and request.keeps_alive and sent and request.body.done


async def _send(client: Source, to_engine: asyncio.StreamWriter, body: Framing) -> None:
    """The request's body. An engine that reads no further has answered already, and that answer counts."""
    try:
        await copy_body(client, to_engine, body)
    except BadMessageError:
        to_engine.transport.abort()
    except OSError:
        return


async def _pass_on_end(client: Source, to_engine: asyncio.StreamWriter) -> None:
    """A client that is done sending, or gone, is so to the engine, as if the two were connected directly."""
    await client.ended.wait()
    if to_engine.can_write_eof():
        with contextlib.suppress(OSError):
            to_engine.write_eof()


async def _relay_answer(
    method: bytes,
    client: Source,
    writer: asyncio.StreamWriter,
    engine: Source,
    to_engine: asyncio.StreamWriter,
) -> Answer | None:
    """The engine's answer, interim ones before it included; None if the connection must end after it."""
    begun = False
    try:
        while True:
            if (head := await engine.head()) is None:
                raise BadMessageError("the engine closed the connection without an answer")
            answer = parse_answer(head, method)
            writer.write(head)
            begun = True
            if answer.status == 101:
                await _tunnel(client, writer, engine, to_engine)
                return None
            if answer.status >= 200:
                break
        await copy_body(engine, writer, answer.body)
        await writer.drain()
        return answer
    except (BadMessageError, ConnectionError) as error:
        if begun:
            raise ConnectionAbortedError("the engine died inside an answer") from error
        await _answer(client, writer, "502 Bad Gateway", str(error))
        return None


async def copy_body(source: Source, sink: asyncio.StreamWriter, body: Framing) -> None:
    """Pass a body on, each piece as it comes. Raises `BadMessageError` if it ends too early."""
    while not body.done:
        data = await source.some()
        if not data:
            if isinstance(body, UntilClose):
                return
            raise BadMessageError("the connection ended inside a body")
        used = body.feed(data)
        if used < len(data):
            source.give_back(data[used:])
        sink.write(data[:used])
        await sink.drain()


async def _tunnel(
    client: Source, writer: asyncio.StreamWriter, engine: Source, to_engine: asyncio.StreamWriter
) -> None:
    """Both ways until one side ends: what follows an upgrade is not HTTP any more."""
    ways = [
        asyncio.create_task(copy_body(source, sink, UntilClose()))
        for source, sink in ((client, to_engine), (engine, writer))
    ]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def _answer(client: Source, writer: asyncio.StreamWriter, status: str, message: str) -> bool:
    """Answer for an engine that cannot, in the form of its API; always False: the connection ends."""
    code = int(status[:3])
    body = json.dumps({"error": {"code": code, "message": f"slipway: {message}", "type": "unavailable"}})
    retry = "Retry-After: 1\r\n" if code == 503 else ""
    writer.write(
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"{retry}Connection: close\r\n\r\n{body}".encode()
    )
    await _hang_up(client, writer)
    return False


async def _hang_up(client: Source, writer: asyncio.StreamWriter) -> None:
    """Close so that the answer arrives: a socket closed over unread bytes takes back what it has sent."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(GOODBYE_S):
            await writer.drain()
            writer.write_eof()
            while await client.read(BLOCK_BYTES):
                pass
