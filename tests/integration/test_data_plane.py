"""What HAProxy does for a service's clients and engine, by the configuration of every proxy."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
import pytest
from waiting import wait_until

from blocks.processes.ports import free_port
from blocks.services.haproxy import HAProxy, last_requests
from tasks.core.errors import RolloutError
from tasks.core.release import ServiceFolder
from tasks.rollout.models import Running
from tasks.rollout.proxy import config
from tasks.rollout.proxy.slots import Route, drain, folder_name, send_to

HOST = "127.0.0.1"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
DEADLINE_S = 30

Behaviour = Callable[[socket.socket], None]


def head_of(connection: socket.socket) -> bytes:
    """Up to and with the first empty line."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        assert byte, f"the connection ended inside a head: {head!r}"
        head += byte
    return head


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


class Engine:
    """Answers each connection by `behaviour`; `seen` counts them."""

    def __init__(self, behaviour: Behaviour, port: int = 0) -> None:
        self._behaviour = behaviour
        self._listener = socket.create_server((HOST, port))
        self.port: int = self._listener.getsockname()[1]
        self.seen = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.seen += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, AssertionError):
            self._behaviour(connection)

    def close(self) -> None:
        self._listener.close()


def answers(body: bytes) -> Behaviour:
    def behave(connection: socket.socket) -> None:
        head_of(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    return behave


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "CLIENT_S", 1)


@pytest.fixture
def proxy(tmp_path: Path, slipway_home: Path) -> Iterator[HAProxy]:
    route = Route(HOST, free_port(), queue_s=1)
    proxy = HAProxy(tmp_path / "chat" / "proxy" / folder_name(HOST, route.port))
    proxy.save(route)
    proxy.lock(None)
    proxy.start()
    yield proxy
    proxy.stop(drain_s=0)


@pytest.fixture
def serve(proxy: HAProxy) -> Iterator[Callable[[Behaviour], Engine]]:
    """Puts an engine that behaves so behind the proxy."""
    engines = []

    def start(behaviour: Behaviour) -> Engine:
        engines.append(Engine(behaviour))
        proxy.send(send_to("blue", engines[-1].port))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


@contextlib.contextmanager
def client(proxy: HAProxy, data: bytes = b"") -> Iterator[socket.socket]:
    route = proxy.route()
    assert route is not None
    with socket.create_connection((HOST, route.port), timeout=DEADLINE_S) as connection:
        connection.sendall(data)
        yield connection


def ask(proxy: HAProxy, data: bytes) -> bytes:
    """Everything that is answered until the proxy hangs up."""
    with client(proxy, data) as connection:
        return read_all(connection)


Serve = Callable[[Behaviour], Engine]

CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunks(size: int, count: int = 1) -> bytes:
    return (b"%x\r\n" % size + bytes(size) + b"\r\n") * count + b"0\r\n\r\n"


REFUSED = {
    "a head that never ends": (b"GET / HTT", 408),
    "a body that never ends": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc", 408),
    "no HTTP": (b"hello\r\n\r\n", 400),
    "a head that is too long": (
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: "
        + b"x" * config.LONGEST_HEAD_BYTES
        + b"\r\n\r\n",
        431,
    ),
    "a body that is too large": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (config.LARGEST_BODY_BYTES + 1)
        + bytes(config.BUFFER_BYTES),
        413,
    ),
    "a large body of unknown length": (CHUNKED + chunks(config.LARGEST_UNSIZED_BODY_BYTES + 1), 413),
    "chunks that are none": (CHUNKED + b"nothex\r\n", 400),
}
PAGES_OF_HAPROXY = ("a head that never ends", "no HTTP", "chunks that are none")


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_never_reaches_the_engine(name: str, proxy: HAProxy, serve: Serve) -> None:
    engine = serve(answers(b"ok"))
    data, status = REFUSED[name]
    answer = ask(proxy, data)
    assert answer.startswith(b"HTTP/1.1 %d" % status)
    assert (b'{"error": {"code": %d, ' % status in answer) == (name not in PAGES_OF_HAPROXY)
    assert engine.seen == 0


def counts(connection: socket.socket) -> None:
    """Answers how many bytes a chunked body had on the wire."""
    head_of(connection)
    body = bytearray()
    while not body.endswith(b"\r\n0\r\n\r\n"):
        body += connection.recv(1 << 20)
    size = b"%d" % body.count(0)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(size), size))


@pytest.mark.parametrize(
    ("size", "count"), [(2, 1), (16 << 10, 2), (4 << 10, 240), (config.LARGEST_UNSIZED_BODY_BYTES, 1)]
)
def test_a_body_of_unknown_length_passes(size: int, count: int, proxy: HAProxy, serve: Serve) -> None:
    serve(counts)
    assert ask(proxy, CHUNKED + chunks(size, count)).endswith(b"\r\n\r\n%d" % (size * count))


def test_http_2_has_the_same_limit(proxy: HAProxy, serve: Serve) -> None:
    engine = serve(counts)
    route = proxy.route()
    assert route is not None
    base = f"http://{HOST}:{route.port}"
    with httpx.Client(base_url=base, http1=False, http2=True, trust_env=False) as client:
        size = config.LARGEST_UNSIZED_BODY_BYTES
        answer = client.post("/", content=iter([bytes(size)]))
        assert (answer.http_version, answer.text) == ("HTTP/2", str(size))
        assert client.post("/", content=iter([bytes(size + 1)])).status_code == 413
    assert engine.seen == 1


def test_a_connection_without_a_request_ends_without_an_answer(proxy: HAProxy) -> None:
    assert ask(proxy, b"") == b""


def test_a_client_that_closes_its_side_has_left(proxy: HAProxy, serve: Serve) -> None:
    """TCP does not tell it from one that is gone, whose generation has to end."""

    def thinks(connection: socket.socket) -> None:
        head_of(connection)
        connection.recv(1)

    serve(thinks)
    with client(proxy, GET) as connection:
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"the client closed its side" in answer


def test_a_pause_of_a_stream_outlasts_a_slow_client(proxy: HAProxy, serve: Serve) -> None:
    go_on = threading.Event()

    def streams(connection: socket.socket) -> None:
        head_of(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        go_on.wait(DEADLINE_S)
        connection.sendall(b"6\r\nsecond\r\n0\r\n\r\n")

    serve(streams)
    with client(proxy, GET.replace(b"Host: x", b"Host: x\r\nConnection: close")) as stream:
        head_of(stream)
        assert stream.recv(100) == b"5\r\nfirst\r\n"  # it comes when it is sent
        assert ask(proxy, b"GET / HTT").startswith(b"HTTP/1.1 408")
        assert proxy.slots()["blue"].requests == 1
        go_on.set()
        assert read_all(stream) == b"6\r\nsecond\r\n0\r\n\r\n"


def test_a_client_that_takes_nothing_is_cut(proxy: HAProxy, serve: Serve) -> None:
    cut = threading.Event()

    def torrent(connection: socket.socket) -> None:
        head_of(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                connection.sendall(bytes(1 << 16))
        except OSError:
            cut.set()

    serve(torrent)
    with client(proxy, GET):
        assert cut.wait(DEADLINE_S)


def test_a_client_that_leaves_ends_its_request_at_the_engine(proxy: HAProxy, serve: Serve) -> None:
    left = threading.Event()

    def thinks(connection: socket.socket) -> None:
        head_of(connection)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""
        left.set()

    engine = serve(thinks)
    with client(proxy, GET):
        wait_until(lambda: engine.seen, "the engine has the request")
    assert left.wait(DEADLINE_S)


def test_requests_wait_for_an_engine_that_is_started_again(proxy: HAProxy) -> None:
    port = free_port()
    route = proxy.route()
    assert route is not None
    proxy.stop(drain_s=0)
    proxy.save(replace(route, slot="blue", backend_port=port, queue_s=DEADLINE_S))
    proxy.lock(None)
    proxy.start()
    with client(proxy, GET) as waiting:
        wait_until(
            lambda: b",blue,0,0,0,0,,0,0,0" not in proxy.ask("show stat -1 4 -1").encode(), "it was tried"
        )
        engine = Engine(answers(b"back"), port)
        assert head_of(waiting).startswith(b"HTTP/1.1 200")
        engine.close()


@pytest.mark.parametrize("how", ["dead", "drained", "never there"])
def test_without_an_engine_clients_are_told_when_to_come_back(how: str, proxy: HAProxy) -> None:
    if how != "never there":
        proxy.send((*send_to("blue", free_port()), *(drain(["blue"]) if how == "drained" else ())))
    answer = ask(proxy, GET)
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"retry-after: 5" in answer
    assert b'"type": "unavailable"' in answer


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-not-http\r\n\r\n", b"HTTP/1.1 20"])
def test_a_request_that_an_engine_has_read_is_never_sent_twice(
    said: bytes, proxy: HAProxy, serve: Serve
) -> None:
    def dies(connection: socket.socket) -> None:
        head_of(connection)
        connection.sendall(said)

    engine = serve(dies)
    assert ask(proxy, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi").startswith(
        b"HTTP/1.1 502"
    )
    assert engine.seen == 1


def test_an_answer_that_breaks_off_never_looks_complete(proxy: HAProxy, serve: Serve) -> None:
    def dies(connection: socket.socket) -> None:
        head_of(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")

    serve(dies)
    with client(proxy, GET) as connection:
        assert b"content-length: 100" in head_of(connection).lower()
        with contextlib.suppress(ConnectionResetError):
            assert read_all(connection) in (b"half", b"")


def test_a_kept_connection_moves_with_its_next_request(proxy: HAProxy, serve: Serve) -> None:
    serve(answers(b"blue"))
    green = Engine(answers(b"green"))
    with client(proxy, GET) as connection:
        head_of(connection)
        assert connection.recv(4) == b"blue"
        proxy.send((*send_to("green", green.port), *drain(["blue"])))
        connection.sendall(GET)
        head_of(connection)
        assert connection.recv(5) == b"green"
    green.close()


def test_bodies_pass_both_ways_larger_than_any_buffer(proxy: HAProxy, serve: Serve) -> None:
    data = bytes(range(256)) * (8 << 12)

    def echoes(connection: socket.socket) -> None:
        head_of(connection)
        body = b""
        while len(body) < len(data):
            body += connection.recv(1 << 20)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    serve(echoes)
    route = proxy.route()
    assert route is not None
    answer = httpx.post(
        f"http://{HOST}:{route.port}/", content=data, headers={"Expect": "100-continue"}, trust_env=False
    )
    assert answer.content == data


def test_an_upgraded_connection_is_a_tunnel(proxy: HAProxy, serve: Serve) -> None:
    def socket_like(connection: socket.socket) -> None:
        head_of(connection)
        connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
        )
        while data := connection.recv(100):
            connection.sendall(data.upper())

    serve(socket_like)
    upgrade = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    with client(proxy, upgrade) as connection:
        assert head_of(connection).startswith(b"HTTP/1.1 101")
        connection.sendall(b"ping")
        assert connection.recv(4) == b"PING"


def test_the_last_requests_and_the_figures_can_be_read(proxy: HAProxy, serve: Serve, tmp_path: Path) -> None:
    serve(answers(b"ok"))
    route = proxy.route()
    assert route is not None
    running = Running(release="r", host=HOST, port=route.port, up=True, metrics_port=route.metrics_port)
    get = partial(httpx.get, trust_env=False)
    for number in range(3):
        get(f"http://{HOST}:{route.port}/v1/{number}?key=secret")

    def requests(lines: int) -> list[str]:
        return last_requests(ServiceFolder(tmp_path, "chat"), running, lines).splitlines()

    wait_until(lambda: len(requests(9)) == 3, "they are logged")
    assert "GET /v1/2 status=200 engine=blue TR=" in requests(1)[0]
    assert "secret" not in "".join(requests(9))
    assert running.metrics is not None
    counted = 'haproxy_server_http_responses_total{proxy="engine",server="blue",code="2xx"} 3'
    assert counted in get(running.metrics).text
    assert get(running.metrics.removesuffix("metrics")).status_code == 404
    assert get(f"http://{HOST}:{route.port}/metrics").text == "ok", "the engine's own"


def test_without_a_proxy_there_are_no_requests_to_show(slipway_home: Path, tmp_path: Path) -> None:
    """As with a supervisor of a version that had its own forwarder."""
    running = Running(release="r", host=HOST, port=free_port(), up=True)
    with pytest.raises(RolloutError) as caught:
        last_requests(ServiceFolder(tmp_path, "chat"), running, 9)
    assert str(caught.value) == (
        "no proxy of chat answered, so its last requests are not known "
        "(restart it: slipway stop chat; slipway start chat)"
    )
    assert last_requests(ServiceFolder(tmp_path, "chat"), None, 9) == ""


def test_the_log_of_requests_is_bounded(
    proxy: HAProxy, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "REQUESTS_BYTES", 1 << 14)
    route = proxy.route()
    assert route is not None
    proxy.stop(drain_s=0)
    proxy.save(route)
    proxy.lock(None)
    proxy.start()
    serve(answers(b"ok"))
    path = "x" * 700
    with httpx.Client(base_url=f"http://{HOST}:{route.port}", trust_env=False) as client:
        for number in range(60):
            client.get(f"/{number}/{path}")
    running = Running(release="r", host=HOST, port=route.port, up=True)

    def logged() -> str:
        return last_requests(ServiceFolder(tmp_path, "chat"), running, 1000)

    wait_until(lambda: "GET /59/" in logged(), "the last one is logged")
    assert "GET /0/" not in logged()
    assert len(logged()) < 1 << 14
