"""Tokenize a text through an engine's own HTTP interface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from blocks.engine.api import EngineApi
from tasks.core.errors import EngineError


@dataclass(frozen=True)
class Token:
    """One token. `whole` is false if it begins or ends inside a character: no grammar can force such a token."""

    id: int
    whole: bool


T = TypeVar("T")


class Tokenize(Protocol[T]):
    """A function that tokenizes a text; `add_special` includes the tokens that the model puts around every text."""

    def __call__(self, text: str, /, *, add_special: bool = False) -> list[T]: ...


def llama_cpp_tokens(api: EngineApi, text: str, *, add_special: bool = False) -> list[Token]:
    """The tokens of `text` under llama.cpp. Raises `EngineError`."""
    body = {"content": text, "add_special": add_special, "parse_special": False, "with_pieces": True}
    return _tokens(api, body, lambda item: Token(int(item["id"]), _is_whole(item["piece"])))


def vllm_tokens(api: EngineApi, model: str, text: str, *, add_special: bool = False) -> list[int]:
    """The tokens of `text` under vLLM, which serves the model under the name `model`. Raises `EngineError`."""
    return _tokens(api, {"model": model, "prompt": text, "add_special_tokens": add_special}, int)


def text_prefix(tokenize: Tokenize[T]) -> list[T]:
    """What the model puts before every text: its begin-of-text token, or nothing."""
    plain, special = tokenize("a"), tokenize("a", add_special=True)
    return special[: len(special) - len(plain)] if special[-len(plain) :] == plain else []


def _tokens(api: EngineApi, body: dict[str, Any], read: Callable[[Any], T]) -> list[T]:
    answer = api.post("/tokenize", body)
    try:
        return [read(item) for item in answer["tokens"]]
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(f"{api.base_url}/tokenize did not return tokens: {str(answer)[:200]}") from error


def _is_whole(piece: str | list[int]) -> bool:
    return isinstance(piece, str) and piece != "" and piece[0] != "\0"
