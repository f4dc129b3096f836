"""Who HAProxy lets in: a real one, before an engine that says which headers reached it."""

from __future__ import annotations

import http.server
import json
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from inline_snapshot import snapshot
from load import Load

from blocks.processes.ports import free_port
from blocks.services.haproxy import HAProxy
from tasks.core.api_keys import digest_of_key
from tasks.core.errors import RolloutError
from tasks.rollout.proxy.slots import Route, send_to

HOST = "127.0.0.1"
FIRST, SECOND, WRONG = "the-first-key-of-two", "sk-proj_2/second+key==", "the-first-key-of-tw0"
BOTH = (digest_of_key(FIRST), digest_of_key(SECOND))


class Engine(http.server.BaseHTTPRequestHandler):
    """Answers everything: a completion, or a stream if the request asks for one."""

    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        self.send_response(200)
        self.send_header("X-Seen", ",".join(sorted(name.lower() for name in self.headers)))
        if body.get("stream"):
            text = b'data: {"choices": []}\n\ndata: [DONE]\n\n'
        else:
            text = b'{"usage": {"completion_tokens": 1}}'
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def engine() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer((HOST, 0), Engine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


@pytest.fixture(params=["own", pytest.param("haproxy", marks=pytest.mark.haproxy)])
def proxy(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    slipway_home: Path,
    engine: int,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[HAProxy]:
    """Slipway's own HAProxy, and the system's."""
    if request.param != "own":
        monkeypatch.setenv("SLIPWAY_HAPROXY", request.param)
    proxy = HAProxy(tmp_path / "proxy")
    proxy.save(Route(HOST, free_port(), queue_s=1))
    proxy.lock(BOTH)
    proxy.start()
    proxy.send(send_to("blue", engine))
    yield proxy
    proxy.stop(drain_s=0)


def address(proxy: HAProxy) -> str:
    route = proxy.route()
    assert route is not None
    return f"http://{HOST}:{route.port}"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


HEADERS: list[tuple[dict[str, str], bool]] = [
    ({}, False),
    (bearer(FIRST), True),
    (bearer(SECOND), True),
    ({"authorization": f"bearer {FIRST}"}, True),
    ({"x-api-key": FIRST}, True),
    ({"X-API-Key": SECOND}, True),
    ({"x-api-key": WRONG, **bearer(FIRST)}, True),
    ({"x-api-key": FIRST, **bearer(WRONG)}, True),
    (bearer(WRONG), False),
    (bearer(FIRST.upper()), False),
    (bearer(FIRST[:-1]), False),
    (bearer(f"{FIRST}x"), False),
    (bearer(f"{FIRST},{WRONG}"), True),  # a header may be a list: its first element counts
    (bearer(f"{WRONG},{FIRST}"), False),
    (bearer(digest_of_key(FIRST)), False),
    (bearer("open"), False),
    ({"Authorization": "Bearer"}, False),
    ({"Authorization": FIRST}, False),
    ({"Authorization": f"Basic {FIRST}"}, False),
    ({"x-api-key": ""}, False),
    ({"x-api-key": "open"}, False),
    ({"x-api-key": f"Bearer {FIRST}"}, False),
    ({"api-key": FIRST}, False),
    ({"Cookie": f"key={FIRST}"}, False),
]
PATHS = [
    *("/", "/v1/completions", "/v1/chat/completions", "/v1/models", "/metrics", "/health/", "/healthz"),
    *("//health", "/health/../v1/models", "/v1/models?path=/health", "/Health", "/v1/health", "/%68ealth"),
]
METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "BREW"]


def test_only_requests_with_a_key_pass(proxy: HAProxy) -> None:
    with httpx.Client(base_url=address(proxy), trust_env=False) as client:
        for headers, passes in HEADERS:
            answer = client.post("/v1/completions", headers=headers, json={})
            assert answer.status_code == (200 if passes else 401), headers
            query = client.get(f"/v1/models?key={FIRST}&api_key={FIRST}", headers=headers)
            assert query.status_code == (200 if passes else 401), headers


def test_every_path_and_method_needs_a_key(proxy: HAProxy) -> None:
    def status(method: str, path: str, headers: str = "") -> int:
        """As it is written: clients would resolve `..` themselves."""
        where = address(proxy).rpartition(":")
        with socket.create_connection((HOST, int(where[2])), timeout=30) as connection:
            connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
            line = connection.makefile("rb").readline().split()
        return int(line[1])

    for path in PATHS:
        for method in METHODS:
            assert status(method, path) == 401, (method, path)
            assert status(method, path, f"x-api-key: {FIRST}\r\n") == 200, (method, path)
    for method in METHODS:
        assert status(method, "/health") == 200
        assert status(method, "/health?deep=1", f"x-api-key: {WRONG}\r\n") == 200
    assert status("GET", "http://x/health") == 200
    assert status("GET", "http://x/v1/models") == 401
    assert status("CONNECT", "health:443") in (400, 401)


def test_the_answer_is_an_error_of_the_api(proxy: HAProxy) -> None:
    answer = httpx.post(f"{address(proxy)}/v1/completions", json={}, headers=bearer(WRONG), trust_env=False)
    assert answer.json() == snapshot(
        {
            "error": {
                "code": 401,
                "message": "slipway: a key of this service is missing or wrong: send Authorization: Bearer KEY",
                "type": "authentication_error",
            }
        }
    )
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["www-authenticate"] == "Bearer"


def test_the_engine_sees_no_key(proxy: HAProxy) -> None:
    keys = {**bearer(FIRST), "x-api-key": SECOND, "x-other": "kept"}
    seen = (
        httpx.get(f"{address(proxy)}/v1/models", headers=keys, trust_env=False).headers["x-seen"].split(",")
    )
    assert "x-other" in seen
    assert not {"authorization", "x-api-key"} & set(seen)


def test_a_door_without_keys_lets_everyone_in_and_passes_headers_on(proxy: HAProxy) -> None:
    proxy.lock(None)
    assert not proxy.locked()
    answer = httpx.get(f"{address(proxy)}/v1/models", headers=bearer(WRONG), trust_env=False)
    assert answer.status_code == 200
    assert "authorization" in answer.headers["x-seen"].split(",")


def test_a_door_with_no_key_left_lets_nobody_in(proxy: HAProxy) -> None:
    proxy.lock(())
    assert proxy.locked()
    assert httpx.get(f"{address(proxy)}/", headers=bearer(FIRST), trust_env=False).status_code == 401
    assert httpx.get(f"{address(proxy)}/health", trust_env=False).status_code == 200


def test_metrics_of_the_proxy_need_no_key(proxy: HAProxy) -> None:
    route = proxy.route()
    assert route is not None
    answer = httpx.get(f"http://{HOST}:{route.metrics_port}/metrics", trust_env=False)
    assert answer.status_code == 200
    assert "haproxy_" in answer.text


def test_keys_are_replaced_under_load_and_no_request_fails(proxy: HAProxy) -> None:
    third = "a-third-key-that-comes"
    old, new = (*BOTH,), (digest_of_key(FIRST), digest_of_key(third))
    with (
        Load(address(proxy), "chat", clients=6, key=FIRST) as load,
        httpx.Client(base_url=address(proxy), trust_env=False) as client,
    ):
        for _ in range(20):
            for digests, works, fails in ((new, third, SECOND), (old, SECOND, third)):
                proxy.lock(digests)
                assert client.get("/v1/models", headers=bearer(works)).status_code == 200
                assert client.get("/v1/models", headers=bearer(fails)).status_code == 401
    assert load.failures == []
    assert load.good > 50


def test_a_request_in_flight_outlives_its_key(proxy: HAProxy) -> None:
    with httpx.stream(
        "POST", f"{address(proxy)}/v1/completions", json={"stream": True}, headers=bearer(SECOND)
    ) as answer:
        proxy.lock((digest_of_key(FIRST),))
        assert answer.status_code == 200
        assert answer.read().endswith(b"[DONE]\n\n")


def test_keys_outlive_a_restart_and_are_in_no_file_or_command_line(proxy: HAProxy) -> None:
    proxy.lock((digest_of_key(FIRST),))
    process = proxy._process()
    assert process is not None
    words = " ".join(process.cmdline()) + " ".join(process.environ().values())
    process.kill()
    process.wait(timeout=10)
    proxy.start()
    assert httpx.get(f"{address(proxy)}/v1/models", headers=bearer(SECOND)).status_code == 401
    kept = {path.name: path.read_text() for path in proxy.folder.iterdir() if path.is_file()}
    assert digest_of_key(FIRST) in kept["keys"]
    assert stat.S_IMODE((proxy.folder / "keys").stat().st_mode) == 0o600
    assert not [name for name, text in {**kept, "words": words}.items() if FIRST in text or SECOND in text]


def test_a_proxy_whose_keys_are_lost_does_not_start(proxy: HAProxy) -> None:
    process = proxy._process()
    assert process is not None
    process.kill()
    process.wait(timeout=10)
    (proxy.folder / "keys").unlink()
    with pytest.raises(RolloutError, match="did not start"):
        proxy.start()


def test_a_proxy_of_an_older_slipway_is_told(proxy: HAProxy) -> None:
    assert proxy.knows_keys()
    process = proxy._process()
    assert process is not None
    process.kill()
    process.wait(timeout=10)
    config = proxy.folder / "haproxy.cfg"
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if "-f keys" not in line and "open" not in line))
    proxy.start()
    assert not proxy.knows_keys()
    with pytest.raises(RolloutError) as caught:
        proxy.lock(BOTH)
    assert caught.value.detail == "it has no list of keys"
    proxy.lock(None)
