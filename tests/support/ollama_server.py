"""Not Ollama, which cannot be installed here: a server that speaks the HTTP API that ollama/ollama documents in
docs/api.md @fb307609 (blobs, create, chat, ps, delete, version, and /v1/completions), with one canned answer.

It holds what it is sent to the documented rules: digests are recomputed, a model needs its blobs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from api_server import serving

ANSWER = "aye"


@dataclass
class State:
    """What the server holds, and which requests came."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    models: dict[str, dict[str, str]] = field(default_factory=dict)
    loaded: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    on_gpu: float = 0.0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: State

    def do_HEAD(self) -> None:
        self.state.requests.append(f"HEAD {self.path}")
        digest = self.path.rpartition("/")[2]
        self.reply(200 if digest in self.state.blobs else 404)

    def do_GET(self) -> None:
        self.state.requests.append(f"GET {self.path}")
        if self.path == "/api/version":
            self.reply(200, {"version": "0.30.11"})
        elif self.path == "/api/ps":
            sizes = {
                name: len(self.state.blobs[next(iter(self.state.models[name].values()))])
                for name in self.state.loaded
            }
            rows = [
                {"name": name, "model": name, "size": size, "size_vram": int(size * self.state.on_gpu)}
                for name, size in sizes.items()
            ]
            self.reply(200, {"models": rows})
        else:
            self.reply(404, {"error": "page not found"})

    def do_DELETE(self) -> None:
        self.state.requests.append(f"DELETE {self.path}")
        name = json.loads(self.body())["model"]
        self.reply(200 if self.state.models.pop(name, None) else 404)

    def do_POST(self) -> None:
        self.state.requests.append(f"POST {self.path}")
        body = self.body()
        if self.path.startswith("/api/blobs/"):
            self.blob(self.path.rpartition("/")[2], body)
            return
        asked = json.loads(body)
        handler = {"/api/create": self.create, "/api/chat": self.chat, "/v1/completions": self.complete}.get(
            self.path
        )
        if handler is None:
            self.reply(404, {"error": "page not found"})
        else:
            handler(asked)

    def blob(self, digest: str, body: bytes) -> None:
        got = "sha256:" + hashlib.sha256(body).hexdigest()
        if got != digest:
            self.reply(400, {"error": f'digest mismatch, expected "{digest}", got "{got}"'})
            return
        there = digest in self.state.blobs
        self.state.blobs[digest] = body
        self.reply(200 if there else 201)

    def create(self, asked: dict[str, Any]) -> None:
        for name, digest in asked["files"].items():
            if digest not in self.state.blobs:
                self.reply(400, {"error": f"blob {digest} of {name} not found"})
                return
        self.state.models[asked["model"]] = asked["files"]
        assert asked["stream"] is False
        self.reply(200, {"status": "success"})

    def known(self, asked: dict[str, Any]) -> bool:
        if asked["model"] in self.state.models:
            self.state.loaded.add(asked["model"])
            return True
        self.reply(404, {"error": f"model '{asked['model']}' not found"})
        return False

    def chat(self, asked: dict[str, Any]) -> None:
        if self.known(asked):
            self.reply(
                200,
                {
                    "model": asked["model"],
                    "message": {"role": "assistant", "content": ANSWER},
                    "done": True,
                    "prompt_eval_count": len(asked["messages"][0]["content"]),
                    "eval_count": 1,
                    "eval_duration": 5_000_000,
                },
            )

    def complete(self, asked: dict[str, Any]) -> None:
        if self.known(asked):
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            self.reply(200, {"choices": [{"text": ANSWER}], "usage": usage})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def reply(self, status: int, value: object = None) -> None:
        text = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def ollama_server() -> Iterator[tuple[str, State]]:
    """Its address, and what it holds."""
    state = State()
    with serving(Handler, state) as address:
        yield address, state
