"""The client of Dify's console, against `tests/support/dify_server.py`, which speaks the documented API and is not Dify:
that cannot be installed here. The endpoint that is registered is asked for real."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from dify_server import EMAIL, PASSWORD, State, dify_server
from inline_snapshot import snapshot

from blocks.applications.dify import DifyApi
from tasks.core.errors import AccessError, EngineError, NetworkError, NotFoundError


class Chat(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        text = b'{"choices": [{"message": {"role": "assistant", "content": "pong"}}]}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Chat)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def console() -> Iterator[tuple[DifyApi, State]]:
    with dify_server() as (address, state), DifyApi(address) as api:
        yield api, state


def test_a_served_model_is_registered_and_seen_from_dify(
    console: tuple[DifyApi, State], endpoint: str
) -> None:
    api, state = console
    api.log_in(EMAIL, PASSWORD)
    assert api.register("chat", endpoint, context=4096) == "active"
    assert state.models["chat"]["endpoint_url"] == f"{endpoint}/v1"
    assert api.register("chat", endpoint, context=8192) == "active"
    assert state.models["chat"]["context_size"] == "8192"
    with pytest.raises(NotFoundError, match="does not have the model other"):
        api.status("other")
    assert [request.rpartition("/")[2] for request in state.requests] == snapshot(
        [
            "login",
            "credentials",
            "credentials",
            "models",
            "credentials",
            "credentials",
            "models",
            "models",
        ]
    )


def test_dify_believes_no_endpoint_that_does_not_answer(console: tuple[DifyApi, State]) -> None:
    api, state = console
    api.log_in(EMAIL, PASSWORD)
    with pytest.raises(
        EngineError, match=r"did not take chat at http://127.0.0.1:9: Credentials validation failed"
    ):
        api.register("chat", "http://127.0.0.1:9", context=4096)
    assert not state.models


def test_who_is_not_logged_in_is_told(console: tuple[DifyApi, State], endpoint: str) -> None:
    api, state = console
    with pytest.raises(AccessError, match=r"refused the login of .*: Invalid email or password"):
        api.log_in(EMAIL, "wrong")
    with pytest.raises(AccessError, match="CSRF token is missing"):
        api.register("chat", endpoint, context=4096)
    api.log_in(EMAIL, PASSWORD)
    state.installed = False
    with pytest.raises(NotFoundError, match="install the plugin langgenius/openai_api_compatible"):
        api.register("chat", endpoint, context=4096)
    with pytest.raises(NetworkError, match="does not answer"), DifyApi("http://127.0.0.1:9") as nobody:
        nobody.log_in(EMAIL, PASSWORD)
