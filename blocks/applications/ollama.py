"""Ollama by its HTTP API: models made from GGUF files, and one real chat.

As documented in ollama/ollama docs/api.md @fb307609.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from blocks.applications.http_json import as_object, said, send
from tasks.core.digests import digest_of_file
from tasks.core.errors import EngineError
from tasks.engines.ollama import create_request

_CHUNK_BYTES = 1 << 20
_NANOSECONDS = 1e9


@dataclass(frozen=True)
class ChatAnswer:
    """One answer of `/api/chat`: its text, its tokens, and the seconds that generating them took."""

    text: str
    prompt_tokens: int
    output_tokens: int
    seconds: float


@dataclass(frozen=True)
class LoadedModel:
    """A model that is in memory now; `gpu_share` is how much of it is on GPUs."""

    name: str
    size_bytes: int
    gpu_share: float


class OllamaApi:
    """A client for one Ollama server at `base_url` (without `/api`)."""

    def __init__(self, base_url: str, *, timeout_s: float = 600.0) -> None:
        self.base_url = base_url
        self._client = httpx.Client(base_url=base_url, timeout=timeout_s, trust_env=False)

    def __enter__(self) -> OllamaApi:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def version(self) -> str:
        """The server's version. Not enough to serve: no model need be there."""
        return str(self._object("GET", "/api/version").get("version", ""))

    def create(self, name: str, gguf: Path) -> str:
        """Make the model `name` from a GGUF file, which is sent only if the server lacks it; the file's digest.

        Repeating it changes nothing. Raises `EngineError` that says what the server refused.
        """
        digest = digest_of_file(gguf)
        if not self.has_blob(digest):
            self._push(digest, gguf)
        answer = self._object("POST", "/api/create", body=create_request(name, gguf.name, digest))
        if answer.get("status") != "success":
            raise EngineError(f"{self.base_url} did not make {name}, it answered {str(answer)[:200]}")
        return digest

    def has_blob(self, digest: str) -> bool:
        """Whether the server holds a file of that digest."""
        answer = send(self._client, "HEAD", f"/api/blobs/{digest}")
        if answer.status_code not in (200, 404):
            raise EngineError(f"{self.base_url}/api/blobs/{digest} answered {answer.status_code}")
        return answer.status_code == 200

    def chat(self, name: str, prompt: str, max_tokens: int) -> ChatAnswer:
        """One real answer, which loads the model. Raises `EngineError` for any other answer than text."""
        body = {
            "model": name,
            "messages": [{"role": "user", "content": prompt}],
            "stream": False,
            "options": {"num_predict": max_tokens, "temperature": 0},
        }
        answer = self._object("POST", "/api/chat", body=body)
        message = answer.get("message")
        text = message.get("content") if isinstance(message, dict) else None
        tokens = answer.get("eval_count")
        if not isinstance(text, str) or not isinstance(tokens, int) or tokens < 1:
            raise EngineError(f"{self.base_url} answered no text but {str(answer)[:200]}")
        return ChatAnswer(
            text=text,
            prompt_tokens=int(answer.get("prompt_eval_count", 0)),
            output_tokens=tokens,
            seconds=float(answer.get("eval_duration", 0)) / _NANOSECONDS,
        )

    def loaded(self) -> tuple[LoadedModel, ...]:
        """What is in memory, and how much of it on GPUs: Ollama falls back to the processor without an error."""
        models = self._object("GET", "/api/ps").get("models") or ()
        return tuple(
            LoadedModel(
                name=str(model["name"]),
                size_bytes=int(model["size"]),
                gpu_share=model.get("size_vram", 0) / model["size"] if model["size"] else 0.0,
            )
            for model in models
        )

    def delete(self, name: str) -> None:
        """Remove a model; one that is not there is removed already."""
        answer = send(self._client, "DELETE", "/api/delete", body={"model": name})
        if answer.status_code not in (200, 404):
            raise EngineError(f"{self.base_url} did not delete {name}: {said(answer)}")

    def _push(self, digest: str, gguf: Path) -> None:
        answer = send(self._client, "POST", f"/api/blobs/{digest}", content=_chunks(gguf))
        if answer.status_code not in (200, 201):
            raise EngineError(f"{self.base_url} refused the blob of {gguf}: {said(answer)}")

    def _object(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        answer = send(self._client, method, path, body=body)
        if answer.status_code != 200:
            raise EngineError(f"{self.base_url}{path} answered {answer.status_code}: {said(answer)}")
        return as_object(answer)


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            yield chunk
