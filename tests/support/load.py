"""Clients that send completions without a pause and never retry: what they lose, users would lose."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

import httpx


class Load:
    """`clients` threads, each with one kept connection; every `stream_every`th streams."""

    def __init__(
        self, base_url: str, model: str, *, clients: int, stream_every: int = 4, key: str | None = None
    ) -> None:
        self._base_url = base_url
        self._model = model
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._run, args=(self._stream if number % stream_every == 0 else self._ask,)
            )
            for number in range(clients)
        ]
        self.good = 0
        self.failures: list[str] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, send: Callable[[httpx.Client], None]) -> None:
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=60)
        with httpx.Client(
            base_url=self._base_url, headers=self._headers, timeout=30, trust_env=False, limits=limits
        ) as client:
            while not self._stop.is_set():
                try:
                    send(client)
                except (httpx.HTTPError, AssertionError) as error:
                    with self._lock:
                        self.failures.append(f"{type(error).__name__}: {error}")
                else:
                    with self._lock:
                        self.good += 1

    def _ask(self, client: httpx.Client) -> None:
        answer = client.post("/v1/completions", json=self._body(stream=False))
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] > 0

    def _stream(self, client: httpx.Client) -> None:
        with client.stream("POST", "/v1/completions", json=self._body(stream=True)) as answer:
            assert answer.status_code == 200, answer.status_code
            lines = [line for line in answer.iter_lines() if line]
        assert lines[-1] == "data: [DONE]", lines[-3:]

    def _body(self, *, stream: bool) -> dict[str, object]:
        return {"model": self._model, "prompt": "The", "max_tokens": 24, "stream": stream, "ignore_eos": True}
