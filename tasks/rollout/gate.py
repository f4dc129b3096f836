"""What a new release must show before it gets traffic: answers under each of its names, asked for as users ask.

A release that chats also shows that its template passes on what users say, that its tokenizer knows the token that
ends an answer, and that answers end with it. Each failure is an `EngineError` of one line.
"""

from __future__ import annotations

import json
from typing import Any, Protocol

from tasks.core.asking import Askable, ask
from tasks.core.errors import EngineError
from tasks.core.release import Release
from tasks.core.serving import ServingConfig
from tasks.engines.card import Prompts, read_card

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_SHORT, _LONG = "Hi", "Which way does the wind turn at noon, and where does it come from in the evening?"
_FORCED = 100
"""A bias that no other token's logit reaches (the range of OpenAI's interface)."""

_FORCED_TOKENS = 4
_MOST_TOKENS = 1024
_TOOL = {
    "type": "function",
    "function": {
        "name": "write_down",
        "description": "Writes down a word.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
    },
}
_SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string", "enum": ["yes", "no"]}},
    "required": ["answer"],
    "additionalProperties": False,
}


class Answer(Protocol):
    """What `blocks.engine.api.Completion` is to the gate."""

    @property
    def text(self) -> str: ...

    @property
    def prompt_tokens(self) -> int: ...


class GateApi(Askable[Answer], Protocol):
    """An engine's HTTP interface, as `blocks.engine.api.EngineApi` gives it."""

    def post(self, path: str, body: dict[str, Any], /) -> dict[str, Any]: ...


def check_answers(api: GateApi, release: Release) -> Answer:
    """The answer to the gate's prompt, once everything else is right. Raises `EngineError`."""
    config, gate = release.config, release.spec.rollout.gate
    answer = ask(api, config, gate.prompt, gate.max_tokens)
    for name in config.names:
        try:
            ask(api, config.model_copy(update={"served_name": name}), gate.prompt, 1)
        except EngineError as error:
            raise EngineError(
                f"the engine does not answer as {name} (serving.names): {error.what}"
            ) from error
    if config.chat:
        _check_words(api, config)
        _check_end(api, config, read_card(release.engine).prompts)
    if config.tool_parser:
        _check_tool_call(api, config)
    if config.reasoning_parser:
        _check_reasoning(api, config)
    if config.structured_output:
        _check_structured(api, config)
    return answer


def _check_words(api: GateApi, config: ServingConfig) -> None:
    short, long = (api.chat(config.served_name, text, 1).prompt_tokens for text in (_SHORT, _LONG))
    if long <= short:
        raise EngineError(
            f"the engine's chat template drops what users say: messages of {len(_SHORT)} and {len(_LONG)} letters "
            f"are {short} and {long} tokens",
            fix="name a file with another template in serving.chat_template",
        )


def _check_end(api: GateApi, config: ServingConfig, prompts: Prompts | None) -> None:
    """Only of engines that tokenize by their interface."""
    end = config.chat.ends_with if config.chat else None
    if end is None or prompts not in ("llama.cpp-tokens", "vllm-tokens"):
        return
    if prompts == "llama.cpp-tokens":
        body = {"content": end, "add_special": False, "parse_special": True}
    else:
        body = {"model": config.served_name, "prompt": end, "add_special_tokens": False}
    tokens = api.post("/tokenize", body).get("tokens")
    if not isinstance(tokens, list) or len(tokens) != 1:
        count = len(tokens) if isinstance(tokens, list) else "no"
        raise EngineError(
            f"answers end with {end!r}, but the engine's tokenizer makes {count} tokens of it",
            fix="take the tokenizer that belongs to the model",
        )
    # A prompt and not a message: a parser of reasoning or tools may not like an answer that ends at once.
    asked = {
        "model": config.served_name,
        "prompt": _LONG,
        "max_tokens": _FORCED_TOKENS,
        "temperature": 0.0,
        "logit_bias": {str(tokens[0]): _FORCED},
    }
    choice = _choice(api, COMPLETIONS, asked)
    if choice.get("finish_reason") != "stop":
        raise EngineError(
            f"the engine does not stop at {end!r}, which ends the chat template's answers: "
            "they would go on until their limit",
            fix="add it to eos_token_id in the model's generation_config.json",
        )


def _check_tool_call(api: GateApi, config: ServingConfig) -> None:
    what = f"with serving.tool_parser {config.tool_parser}"
    body = {"tools": [_TOOL], "tool_choice": "required"}
    choice = _choice(api, CHAT, _asking(config, "Write down the word wind.", body))
    calls = _message(choice).get("tool_calls")
    if not isinstance(calls, list) or not calls:
        raise EngineError(
            f"{what} the engine's answer to a request with tools {_without('tool call', choice)}"
        )
    try:
        arguments = calls[0]["function"]["arguments"]
        given = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (KeyError, TypeError, ValueError):
        given = None
    if not isinstance(given, dict):
        raise EngineError(
            f"{what} the arguments of the engine's tool call are not JSON: {str(calls[0])[:120]}"
        )


def _check_reasoning(api: GateApi, config: ServingConfig) -> None:
    choice = _choice(api, CHAT, _asking(config, "Is 9 larger than 11? Think about it.", {}))
    message = _message(choice)
    if not (message.get("reasoning_content") or message.get("reasoning")):
        raise EngineError(
            f"with serving.reasoning_parser {config.reasoning_parser} the engine's answer "
            f"{_without('reasoning', choice)}"
        )


def _check_structured(api: GateApi, config: ServingConfig) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": _SCHEMA, "strict": True}}
    choice = _choice(api, CHAT, _asking(config, "Is it windy? Answer in JSON.", {"response_format": form}))
    text = _message(choice).get("content")
    try:
        given = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        given = None
    if given not in ({"answer": "yes"}, {"answer": "no"}):
        raise EngineError(
            f"with serving.structured_output {config.structured_output} the engine's answer is not what the JSON "
            f"schema demands: {str(text)[:120]!r}"
        )


def _asking(config: ServingConfig, message: str, more: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": config.served_name,
        "messages": [{"role": "user", "content": message}],
        "max_tokens": min(_MOST_TOKENS, config.context // 2),
        "temperature": 0.0,
        **more,
    }


def _choice(api: GateApi, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = api.post(path, body)
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise EngineError(f"{path} did not return a choice: {str(answer)[:200]}")
    return choices[0]


def _message(choice: dict[str, Any]) -> dict[str, Any]:
    message = choice.get("message")
    return message if isinstance(message, dict) else {}


def _without(what: str, choice: dict[str, Any]) -> str:
    text = str(_message(choice).get("content") or "")[:80]
    return f"has no {what} (it ended by {choice.get('finish_reason')}): {text!r}"
