"""The forwarder between real sockets, with engines that do what engines do, well and badly."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import pytest

from tasks.rollout.daemon import forwarder as module
from tasks.rollout.daemon.forwarder import Backend, Forwarder

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HOST = "127.0.0.1"


def run(test: Coroutine[Any, Any, None]) -> None:
    async def with_deadline() -> None:
        async with asyncio.timeout(20):
            await test

    asyncio.run(with_deadline())


@contextlib.asynccontextmanager
async def engine(behaviour: Behaviour) -> AsyncIterator[Backend]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await behaviour(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    try:
        yield Backend(HOST, server.sockets[0].getsockname()[1])
    finally:
        server.close()


@contextlib.asynccontextmanager
async def forwarding(backend: Backend | None) -> AsyncIterator[tuple[Forwarder, int]]:
    forwarder = Forwarder()
    forwarder.backend = backend
    port = await forwarder.listen(HOST, 0)
    try:
        yield forwarder, port
    finally:
        await forwarder.close()


async def head_of(reader: asyncio.StreamReader) -> str:
    return (await reader.readuntil(b"\r\n\r\n")).decode()


def named(name: str) -> Behaviour:
    """An engine that answers its name, and keeps its connection open."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not reader.at_eof():
            try:
                await head_of(reader)
            except asyncio.IncompleteReadError:
                return
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(name)}\r\n\r\n{name}".encode())
            await writer.drain()

    return behave


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[str, str]:
    """Status line and body of one answer with a content length."""
    writer.write(request)
    await writer.drain()
    head = await head_of(reader)
    length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
    return head.split("\r\n")[0], (await reader.readexactly(length)).decode()


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def test_a_kept_connection_moves_to_the_new_engine_with_its_next_request() -> None:
    async def test() -> None:
        async with (
            engine(named("blue")) as blue,
            engine(named("green")) as green,
            forwarding(blue) as (forwarder, port),
        ):
            reader, writer = await asyncio.open_connection(HOST, port)
            assert await ask(reader, writer, GET) == ("HTTP/1.1 200 OK", "blue")
            assert await ask(reader, writer, GET) == ("HTTP/1.1 200 OK", "blue")
            forwarder.backend = green
            assert await blue.drained(1)
            assert await ask(reader, writer, GET) == ("HTTP/1.1 200 OK", "green")
            writer.close()

    run(test())


def test_requests_sent_ahead_are_answered_in_turn() -> None:
    async def test() -> None:
        async with engine(named("blue")) as blue, forwarding(blue) as (_, port):
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(b"\r\n" + GET + GET)
            for _ in range(2):
                assert (await head_of(reader)).startswith("HTTP/1.1 200")
                assert await reader.readexactly(4) == b"blue"
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()

    run(test())


def test_pieces_of_a_stream_pass_when_they_come_and_count_as_open() -> None:
    go_on = asyncio.Event()

    async def streaming(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await go_on.wait()
        writer.write(b"6\r\nsecond\r\n0\r\n\r\n")
        await writer.drain()

    async def test() -> None:
        async with engine(streaming) as blue, forwarding(blue) as (_, port):
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(GET)
            await head_of(reader)
            assert await reader.readexactly(10) == b"5\r\nfirst\r\n"
            assert blue.open_requests == 1
            assert not await blue.drained(0)
            go_on.set()
            assert await reader.readexactly(16) == b"6\r\nsecond\r\n0\r\n\r\n"
            assert await blue.drained(5)
            writer.close()

    run(test())


def test_bodies_pass_both_ways_larger_than_any_buffer() -> None:
    size = 8 << 20

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await head_of(reader)
        assert "Expect: 100-continue" in head
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(size)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + body)
        await writer.drain()

    async def test() -> None:
        async with engine(echo) as blue, forwarding(blue) as (_, port):
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % size)
            assert await head_of(reader) == "HTTP/1.1 100 Continue\r\n\r\n"
            data = bytes(range(256)) * (size // 256)
            writer.write(data)
            assert (await head_of(reader)).startswith("HTTP/1.1 200")
            assert await reader.readexactly(size) == data
            writer.close()

    run(test())


def test_a_slow_client_holds_the_engine_back_instead_of_filling_memory() -> None:
    stuck = asyncio.Event()
    sent = 0

    async def torrent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while sent < 256 << 20:
            writer.write(bytes(1 << 16))
            try:
                async with asyncio.timeout(0.5):
                    await writer.drain()
            except TimeoutError:
                break
            sent += 1 << 16
        stuck.set()

    async def test() -> None:
        async with engine(torrent) as blue, forwarding(blue) as (_, port):
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(GET)
            await head_of(reader)
            await stuck.wait()
            assert sent < 64 << 20
            writer.transport.abort()
            assert await blue.drained(5)

    run(test())


def test_a_client_that_leaves_ends_its_request_at_the_engine() -> None:
    left = asyncio.Event()

    async def thinking(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        assert await reader.read() == b""  # as llama.cpp and uvicorn notice it
        left.set()

    async def test() -> None:
        async with engine(thinking) as blue, forwarding(blue) as (_, port):
            _, writer = await asyncio.open_connection(HOST, port)
            writer.write(GET)
            await writer.drain()
            writer.close()
            await left.wait()
            assert await blue.drained(5)

    run(test())


def test_an_engine_that_answers_before_it_has_read_everything() -> None:
    async def refusing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async def test() -> None:
        async with engine(refusing) as blue, forwarding(blue) as (_, port):
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(b"POST / HTTP/1.1\r\nContent-Length: 100000000\r\n\r\nsome")
            assert (await head_of(reader)).startswith("HTTP/1.1 413")
            assert await reader.read() == b""  # what is left of the body is no new request
            writer.close()

    run(test())


@pytest.mark.parametrize(
    ("said", "expected"),
    [(b"", "502"), (b"SSH-2.0-not-http\r\n\r\n", "502"), (b"HTTP/1.1 20", "502")],
)
def test_an_engine_that_dies_before_it_answers(said: bytes, expected: str) -> None:
    async def dying(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(said)

    async def test() -> None:
        async with engine(dying) as blue, forwarding(blue) as (_, port):
            reader, writer = await asyncio.open_connection(HOST, port)
            status, body = await ask(reader, writer, GET)
            assert expected in status
            assert "slipway: " in body
            writer.close()

    run(test())


def test_an_engine_that_dies_inside_an_answer_never_looks_complete() -> None:
    async def dying(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await writer.drain()

    async def test() -> None:
        async with engine(dying) as blue, forwarding(blue) as (_, port):
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(GET)
            assert "Content-Length: 100" in await head_of(reader)
            assert await reader.read() in (b"half", b"")
            writer.close()

    run(test())


def test_without_an_engine_clients_are_asked_to_come_back() -> None:
    async def test() -> None:
        async with engine(named("gone")) as gone:
            pass
        for backend in (None, gone):
            async with forwarding(backend) as (_, port):
                reader, writer = await asyncio.open_connection(HOST, port)
                writer.write(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello")
                answer = (await reader.read()).decode()
                assert answer.startswith("HTTP/1.1 503")
                assert "Retry-After: 1" in answer
                writer.close()

    run(test())


@pytest.mark.parametrize("data", [b"hello\r\n\r\n", b"GET / HTT", b"x" * 70_000])
def test_what_is_no_request_gets_400(data: bytes) -> None:
    async def test() -> None:
        async with engine(named("blue")) as blue, forwarding(blue) as (_, port):
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(data)
            writer.write_eof()
            assert (await reader.read()).startswith(b"HTTP/1.1 400")
            writer.close()

    run(test())


def test_a_broken_body_is_not_passed_off_as_a_whole_one() -> None:
    read = asyncio.Queue[bytes]()

    async def reading(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        with contextlib.suppress(ConnectionError):
            await read.put(await reader.read())

    async def test() -> None:
        async with engine(reading) as blue, forwarding(blue) as (_, port):
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nnothex\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 502")
            assert await blue.drained(5)
            writer.close()

    run(test())


def test_an_upgraded_connection_is_a_tunnel() -> None:
    async def socket_like(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n")
        while data := await reader.read(100):
            writer.write(data.upper())
            await writer.drain()

    async def test() -> None:
        async with engine(socket_like) as blue, forwarding(blue) as (_, port):
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n")
            await head_of(reader)
            writer.write(b"ping")
            assert await reader.readexactly(4) == b"PING"
            assert blue.open_requests == 1
            writer.close()
            assert await blue.drained(5)

    run(test())


def test_an_answer_without_a_length_ends_the_connection() -> None:
    async def old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nall of it")
        await writer.drain()

    async def test() -> None:
        async with engine(old) as blue, forwarding(blue) as (_, port):
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(GET)
            assert (await reader.read()).endswith(b"all of it")
            writer.close()

    run(test())


def test_an_idle_client_is_hung_up_on_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_S", 0.05)

    async def test() -> None:
        async with engine(named("blue")) as blue, forwarding(blue) as (_, port):
            reader, writer = await asyncio.open_connection(HOST, port)
            assert await reader.read() == b""
            writer.close()

    run(test())


def test_who_waits_to_be_accepted_at_the_end_is_answered() -> None:
    """Connections and requests that the kernel holds already when a service ends."""

    async def test() -> None:
        async with forwarding(None) as (forwarder, port):
            with contextlib.ExitStack() as stack:
                clients = [
                    stack.enter_context(socket.create_connection((HOST, port), timeout=5)) for _ in range(50)
                ]
                for client in clients:  # no turn of the loop since: none of them is accepted yet
                    client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                await forwarder.close()
                answers = [client.recv(4096) for client in clients]
                assert {answer.split(b"\r\n")[0] for answer in answers} == {
                    b"HTTP/1.1 503 Service Unavailable"
                }
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection((HOST, port))

    run(test())


def test_a_port_is_taken_once_and_let_go() -> None:
    async def test() -> None:
        async with forwarding(None) as (forwarder, port):
            assert forwarder.addresses == [(HOST, port)]
            with pytest.raises(OSError, match="in use") as caught:
                await Forwarder().listen(HOST, port)
            assert caught.value.errno == errno.EADDRINUSE
            forwarder.unlisten(HOST, port)
            forwarder.unlisten(HOST, port)
            assert forwarder.addresses == []
            assert await forwarder.listen(HOST, port) == port

    run(test())
