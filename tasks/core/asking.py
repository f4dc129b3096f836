"""How a served model is asked: for the embedding of a text or the scores of documents if that is its task; else by a
message if it has a chat template, or by a prompt. Pure."""

from __future__ import annotations

from typing import Protocol, TypeVar

from tasks.core.model_task import Task
from tasks.core.serving import ServingConfig

Answer_co = TypeVar("Answer_co", covariant=True)

OTHER_DOCUMENT = "A ship lies at the quay."
"""What a ranker scores beside the text itself."""


class Askable(Protocol[Answer_co]):
    """An engine's HTTP interface, as `blocks.engine.api.EngineApi` gives it."""

    def complete(self, model: str, prompt: str, max_tokens: int, /) -> Answer_co: ...

    def chat(self, model: str, message: str, max_tokens: int, /) -> Answer_co: ...

    def embed(self, model: str, text: str, /) -> Answer_co: ...

    def rank(self, model: str, query: str, documents: tuple[str, ...], /) -> Answer_co: ...


def ask(api: Askable[Answer_co], config: ServingConfig, text: str, max_tokens: int) -> Answer_co:
    """One real answer, asked for in the way that users of this model ask.

    `max_tokens` is for models that generate text.
    """
    if config.task is Task.EMBED:
        return api.embed(config.served_name, text)
    if config.task is Task.RERANK:
        return api.rank(config.served_name, text, (text, OTHER_DOCUMENT))
    send = api.chat if config.chat else api.complete
    return send(config.served_name, text, max_tokens)
