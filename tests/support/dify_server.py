"""Not Dify, which cannot be installed here: a server that speaks the part of its console's API that registers models,
as langgenius/dify has it (api/controllers/console/auth/login.py @02881062, workspace/models.py @0095ef8f, libs/token.py
@03a7344a): a login that sets cookies, a token against forged requests, and credentials that are believed only after the
endpoint has answered a chat, which this server really asks for, as the plugin openai_api_compatible does.
"""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from api_server import serving

EMAIL, PASSWORD = "owner@example.com", "quay side 7"
PROVIDER = "langgenius/openai_api_compatible/openai_api_compatible"
MODELS = f"/console/api/workspaces/current/model-providers/{PROVIDER}/models"
CREDENTIALS = f"{MODELS}/credentials"
_COOKIE_TOKEN, _CSRF = "access", "against-forgery"


@dataclass
class State:
    """Credentials by model, and which requests came."""

    models: dict[str, dict[str, str]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    status: str = "active"
    installed: bool = True


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: State

    def do_GET(self) -> None:
        self.handle_request("GET")

    def do_POST(self) -> None:
        self.handle_request("POST")

    def do_PUT(self) -> None:
        self.handle_request("PUT")

    def do_DELETE(self) -> None:
        self.handle_request("DELETE")

    def handle_request(self, method: str) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        path = urlsplit(self.path)
        self.state.requests.append(f"{method} {path.path.removeprefix('/console/api')}")
        if path.path == "/console/api/login":
            self.log_in(body)
        elif not self.authorised():
            self.reply(
                401, {"code": "unauthorized", "message": "CSRF token is missing or invalid.", "status": 401}
            )
        elif not self.state.installed:
            self.reply(
                404, {"code": "not_found", "message": f"Provider {PROVIDER} does not exist.", "status": 404}
            )
        elif path.path == MODELS:
            self.models(method, body)
        elif path.path == CREDENTIALS:
            self.credentials(method, body or {key: values[0] for key, values in parse_qs(path.query).items()})
        else:
            self.reply(404, {"code": "not_found", "message": "no such page", "status": 404})

    def log_in(self, body: dict[str, Any]) -> None:
        given = base64.b64decode(body["password"]).decode()
        if (body["email"], given) != (EMAIL, PASSWORD):
            self.reply(
                401, {"code": "authentication_failed", "message": "Invalid email or password.", "status": 401}
            )
            return
        cookies = (f"access_token={_COOKIE_TOKEN}; HttpOnly; Path=/", f"csrf_token={_CSRF}; Path=/")
        self.reply(200, {"result": "success"}, cookies)

    def authorised(self) -> bool:
        cookies = SimpleCookie(self.headers.get("Cookie", ""))
        given = {name: morsel.value for name, morsel in cookies.items()}
        return given.get("access_token") == _COOKIE_TOKEN and self.headers.get("X-CSRF-Token") == _CSRF

    def models(self, method: str, body: dict[str, Any]) -> None:
        if method == "DELETE":
            self.state.models.pop(body["model"], None)
            self.reply(204)
            return
        rows = [
            {"model": name, "model_type": "llm", "status": self.state.status} for name in self.state.models
        ]
        self.reply(200, {"data": [{"model": "other", "model_type": "rerank", "status": "active"}, *rows]})

    def credentials(self, method: str, asked: dict[str, Any]) -> None:
        model = asked["model"]
        assert asked["model_type"] == "llm"
        if method == "GET":
            known = "0b0e0f4e-3f64-4e0c-9d2b-6f1f5a2f7c11" if model in self.state.models else None
            self.reply(200, {"credentials": self.state.models.get(model, {}), "current_credential_id": known})
            return
        if (method == "PUT") != ("credential_id" in asked):
            self.reply(400, {"code": "invalid_param", "message": "credential_id", "status": 400})
            return
        refused = ask(asked["credentials"])
        if refused:
            self.reply(400, {"code": "invalid_param", "message": refused, "status": 400})
            return
        self.state.models[model] = asked["credentials"]
        self.reply(201 if method == "POST" else 200, {"result": "success"})

    def reply(self, status: int, value: object = None, cookies: tuple[str, ...] = ()) -> None:
        text = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        for cookie in cookies:
            self.send_header("Set-Cookie", cookie)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


def ask(credentials: dict[str, str]) -> str | None:
    """What is wrong with an endpoint, by one chat; None if it answers."""
    body = {
        "model": credentials["endpoint_model_name"],
        "messages": [{"role": "user", "content": "ping"}],
        "max_tokens": 5,
    }
    request = urllib.request.Request(
        f"{credentials['endpoint_url']}/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            content = json.load(answer)["choices"][0]["message"]["content"]
    except (OSError, urllib.error.URLError, KeyError, ValueError) as error:
        return f"Credentials validation failed: {error}"
    return None if isinstance(content, str) else "Credentials validation failed: no text"


@contextmanager
def dify_server() -> Iterator[tuple[str, State]]:
    """Its address, and what it holds."""
    state = State()
    with serving(Handler, state) as address:
        yield address, state
