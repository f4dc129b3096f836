"""A server that speaks vLLM's interface for prompts' probabilities, of a model whose next token is always known.

Tokens are bytes. After any token the model holds the next byte likeliest, at one half, and `a` at a quarter.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from api_server import serving

BEGIN = 0


def row(token: int, before: int, likeliest: int) -> dict[str, Any]:
    """What is answered for one token of a prompt: the likeliest, and itself whatever its rank."""
    ranked = [(before + 1) % 256, ord("a"), *range(200, 256)]
    logprobs = [math.log(0.5), math.log(0.25), *(math.log(0.001) - rank for rank in range(56))]
    found = {
        str(ranked[rank]): {"logprob": logprobs[rank], "rank": rank + 1, "decoded_token": "?"}
        for rank in range(likeliest)
    }
    found.setdefault(str(token), {"logprob": -9.0, "rank": 77, "decoded_token": "?"})
    return found


def answer(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    if path == "/tokenize":
        prefix = [BEGIN] if body["add_special_tokens"] else []
        return 200, {"tokens": [*prefix, *body["prompt"].encode()]}
    likeliest = body.get("prompt_logprobs")
    if likeliest is not None and likeliest > 20:
        return 400, {"error": {"message": f"Requested prompt logprobs of {likeliest}, greater than 20"}}
    prompt = body["prompt"]
    made = [(prompt[-1] + step) % 256 for step in range(1, body["max_tokens"] + 1)]
    choice: dict[str, Any] = {"text": bytes(made).decode(errors="replace")}
    if likeliest is not None:
        rows = [row(token, before, likeliest) for before, token in pairwise(prompt)]
        choice["prompt_logprobs"] = [None, *rows]
    return 200, {"choices": [choice]}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, found = answer(self.path, body)
        text = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def logprob_server() -> Iterator[str]:
    """Its address."""
    with serving(Handler, None) as address:
        yield address
