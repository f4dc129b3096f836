"""How a served model is asked: by a message if it has a chat template, else by a prompt. Pure."""

from __future__ import annotations

from typing import Protocol, TypeVar

from tasks.core.serving import ServingConfig

Answer_co = TypeVar("Answer_co", covariant=True)


class Askable(Protocol[Answer_co]):
    """An engine's HTTP interface, as `blocks.engine.api.EngineApi` gives it."""

    def complete(self, model: str, prompt: str, max_tokens: int, /) -> Answer_co: ...

    def chat(self, model: str, message: str, max_tokens: int, /) -> Answer_co: ...


def ask(api: Askable[Answer_co], config: ServingConfig, text: str, max_tokens: int) -> Answer_co:
    """One real answer, asked for in the way that users of this model ask."""
    send = api.chat if config.chat else api.complete
    return send(config.served_name, text, max_tokens)
