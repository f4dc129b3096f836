"""The HTTP interface of a serving engine, as its users call it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from blocks.engine.vectors import (
    EMBEDDINGS,
    RERANK,
    describe_scores,
    describe_vectors,
    embeddings_in,
    scores_in,
)
from tasks.core.errors import EngineError, EngineHungError

_UNLIKE = "A crane lifts one crate; 42 barges wait."
"""A text that says something else than anyone's, so that its embedding must be another."""


@dataclass(frozen=True)
class Completion:
    """One answer of an engine: its text, tokens and wall time."""

    text: str
    prompt_tokens: int
    output_tokens: int
    seconds: float


def is_silent(base_url: str, *, timeout_s: float = 5.0) -> bool:
    """Whether `/health` sends nothing at all for `timeout_s`; a refusal or an error is an answer."""
    try:
        httpx.get(f"{base_url}/health", timeout=timeout_s, trust_env=False)
    except httpx.TimeoutException:
        return True
    except httpx.HTTPError:
        return False
    return False


def _said(message: dict[str, Any]) -> str:
    """What a message says; a model that is still reasoning has not said anything else."""
    said = [message.get(key) or "" for key in ("content", "reasoning_content", "reasoning")]
    return next((text for text in said if text), "")


class EngineApi:
    """A client for one engine at `base_url` (without `/v1`) that waits `timeout_s` for each next byte.

    Requests carry `key`, if there is one.
    """

    def __init__(self, base_url: str, *, timeout_s: float = 60.0, key: str | None = None) -> None:
        self.base_url = base_url
        self._timeout_s = timeout_s
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(base_url=base_url, headers=headers, timeout=timeout_s, trust_env=False)

    def __enter__(self) -> EngineApi:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ready(self) -> bool:
        """Whether `/health` answers 200. Not enough to serve: see `complete`."""
        try:
            return self._client.get("/health", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def complete(self, model: str, prompt: str, max_tokens: int) -> Completion:
        """One real completion. Raises `EngineError` for any other answer than text."""
        body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0}
        return self._complete("/v1/completions", body, lambda choice: choice["text"], prompt)

    def chat(self, model: str, message: str, max_tokens: int) -> Completion:
        """One real answer to a user's message, with what it was reasoned if no more came. Raises as `complete`."""
        messages = [{"role": "user", "content": message}]
        body = {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0.0}
        return self._complete("/v1/chat/completions", body, lambda choice: _said(choice["message"]), message)

    def embeddings(self, model: str, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """A vector for each text. Raises `EngineError` for any other answer than numbers."""
        answer = self.post(EMBEDDINGS, {"model": model, "input": list(texts)})
        return embeddings_in(answer, len(texts), self.base_url)

    def scores(self, model: str, query: str, documents: Sequence[str]) -> list[float]:
        """How well each document answers the query. Raises `EngineError` for any other answer than numbers."""
        body = {"model": model, "query": query, "documents": list(documents)}
        return scores_in(self.post(RERANK, body), len(documents), self.base_url)

    def embed(self, model: str, text: str) -> Completion:
        """The embedding of a text, as an answer whose text describes it.

        Raises `EngineError` for any other answer than numbers, and if another text has the same embedding.
        """
        start = time.monotonic()
        vectors = self.embeddings(model, [text])
        seconds = time.monotonic() - start
        if text != _UNLIKE and vectors == self.embeddings(model, [_UNLIKE]):
            raise EngineError(f"{self.base_url} returns the same embedding for different texts")
        return Completion(describe_vectors(vectors), 0, 1, seconds)

    def rank(self, model: str, query: str, documents: tuple[str, ...]) -> Completion:
        """The scores of documents, as an answer whose text lists them. Raises as `embed` does."""
        start = time.monotonic()
        scores = self.scores(model, query, documents)
        seconds = time.monotonic() - start
        if len(set(scores)) < len(set(documents)):
            raise EngineError(f"{self.base_url} returns the same score for different documents")
        return Completion(describe_scores(scores), 0, 1, seconds)

    def _complete(
        self, path: str, body: dict[str, Any], text_of: Callable[[dict[str, Any]], object], prompt: str
    ) -> Completion:
        start = time.monotonic()
        answer = self.post(path, body)
        try:
            text = text_of(answer["choices"][0])
            usage = answer["usage"]
            if not isinstance(text, str):
                raise TypeError(text)
            completion = Completion(
                text=text,
                prompt_tokens=int(usage["prompt_tokens"]),
                output_tokens=int(usage["completion_tokens"]),
                seconds=time.monotonic() - start,
            )
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise EngineError(f"{self.base_url} did not return a completion: {str(answer)[:200]}") from error
        if completion.output_tokens < 1:
            raise EngineError(f"{self.base_url} returned an empty completion for {prompt!r}")
        return completion

    def metrics(self, path: str = "/metrics") -> dict[str, float]:
        """Prometheus samples at `path`, labels dropped and summed. Raises `EngineError`."""
        try:
            answer = self._client.get(path)
            answer.raise_for_status()
        except httpx.HTTPError as error:
            raise EngineError(f"{self.base_url}{path} does not answer: {error}") from error
        values: dict[str, float] = defaultdict(float)
        try:
            for family in text_string_to_metric_families(answer.text):
                for sample in family.samples:
                    values[sample.name] += sample.value
        except ValueError as error:
            raise EngineError(f"{self.base_url}{path} is not in Prometheus' format: {error}") from error
        return dict(values)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """A JSON request. Raises `EngineError` that names address and status, `EngineHungError` for silence."""
        try:
            answer = self._client.post(path, json=body)
        except httpx.TimeoutException as error:
            raise EngineHungError(
                f"{self.base_url}{path} sent no byte within {self._timeout_s:g} s"
            ) from error
        except httpx.HTTPError as error:
            raise EngineError(
                f"{self.base_url}{path} does not answer: {error or type(error).__name__}"
            ) from error
        if answer.status_code != 200:
            raise EngineError(f"{self.base_url}{path} answered {answer.status_code}: {answer.text[:200]}")
        try:
            parsed = answer.json()
        except ValueError as error:
            raise EngineError(f"{self.base_url}{path} did not return JSON: {answer.text[:200]!r}") from error
        if not isinstance(parsed, dict):
            raise EngineError(f"{self.base_url}{path} did not return a JSON object: {answer.text[:200]!r}")
        return parsed
