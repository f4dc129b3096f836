"""What the gate asks of an engine, and what it makes of answers: those that no engine here gives are scripted."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from releases import make_release

from tasks.core.errors import EngineError
from tasks.core.release import Release
from tasks.core.serving import ChatTemplate
from tasks.rollout.gate import CHAT, COMPLETIONS, check_answers


@dataclass(frozen=True)
class Text:
    text: str
    prompt_tokens: int


@dataclass
class Engine:
    """Answers as a good engine does, but for `message`, `finish` and the tokens that `tokenize` gives."""

    message: dict[str, Any] = field(default_factory=lambda: {"content": "Yes."})
    finish: str = "stop"
    tokens: Any = (7,)
    deaf: bool = False
    names: tuple[str, ...] = ("chat", "gpt-4")
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def complete(self, model: str, prompt: str, max_tokens: int, /) -> Text:
        return self.chat(model, prompt, max_tokens)

    def chat(self, model: str, message: str, max_tokens: int, /) -> Text:
        if model not in self.names:
            raise EngineError(f"no model {model}")
        return Text(" fox", 3 if self.deaf else len(message))

    def post(self, path: str, body: dict[str, Any], /) -> dict[str, Any]:
        self.asked.append((path, body))
        if path == "/tokenize":
            return {"tokens": list(self.tokens) if isinstance(self.tokens, tuple) else self.tokens}
        return {"choices": [{"message": self.message, "finish_reason": self.finish}]}


CHATTY = {"chat": ChatTemplate(digest="sha256:" + "a" * 64, ends_with="<|im_end|>")}


@pytest.fixture
def release(tmp_path: Path) -> Release:
    (tmp_path / "model.gguf").write_bytes(b"weights")
    return make_release(tmp_path / "bin" / "python", tmp_path / "model.gguf")


def offering(release: Release, **config: Any) -> Release:
    return release.model_copy(update={"config": release.config.model_copy(update=config)})


def call(arguments: Any) -> dict[str, Any]:
    return {"tool_calls": [{"function": {"name": "write_down", "arguments": arguments}}]}


GOOD = {
    "completes": ({}, {}),
    "chats": (CHATTY, {}),
    "other names": ({"names": ("gpt-4",)}, {}),
    "a tool call": ({"tool_parser": "auto"}, {"message": call('{"word": "wind"}')}),
    "arguments as an object": ({"tool_parser": "auto"}, {"message": call({"word": "wind"})}),
    "reasoning": ({"reasoning_parser": "auto"}, {"message": {"content": "No.", "reasoning_content": "Hm"}}),
    "reasoning as vLLM has it": ({"reasoning_parser": "qwen3"}, {"message": {"reasoning": "Hm"}}),
    "a schema": ({"structured_output": "auto"}, {"message": {"content": '{ "answer": "no" }'}}),
}
BAD = {
    "deaf": (CHATTY, {"deaf": True}, "drops what users say: messages of 2 and 81 letters are 3 and 3 tokens"),
    "another tokenizer": (CHATTY, {"tokens": (1, 2)}, "the engine's tokenizer makes 2 tokens of it"),
    "no tokenizer": (CHATTY, {"tokens": None}, "the engine's tokenizer makes no tokens of it"),
    "endless": (CHATTY, {"finish": "length"}, "does not stop at '<|im_end|>'"),
    "one name": ({"names": ("gpt-5",)}, {}, "does not answer as gpt-5 (serving.names): no model gpt-5"),
    "no tool call": ({"tool_parser": "hermes"}, {}, "parser hermes the engine's answer to a request with tools has no"),
    "empty calls": ({"tool_parser": "hermes"}, {"message": {"tool_calls": []}}, "has no tool call (it ended by stop)"),
    "broken arguments": ({"tool_parser": "x"}, {"message": call('{"word": ')}, "are not JSON"),
    "arguments as a list": ({"tool_parser": "x"}, {"message": call("[]")}, "are not JSON"),
    "no function": ({"tool_parser": "x"}, {"message": {"tool_calls": [{}]}}, "are not JSON"),
    "no reasoning": ({"reasoning_parser": "qwen3"}, {}, "serving.reasoning_parser qwen3 the engine's answer has no"),
    "no JSON": ({"structured_output": "auto"}, {}, "is not what the JSON schema demands: 'Yes.'"),
    "another form": ({"structured_output": "auto"}, {"message": {"content": '{"a": 1}'}}, "JSON schema demands"),
    "no content": ({"structured_output": "auto"}, {"message": {"content": None}}, "JSON schema demands: 'None'"),
    "no message": ({"structured_output": "auto"}, {"message": None}, "JSON schema demands"),
}  # fmt: skip


@pytest.mark.parametrize(("config", "engine"), GOOD.values(), ids=GOOD)
def test_a_good_answer_passes(release: Release, config: dict[str, Any], engine: dict[str, Any]) -> None:
    assert check_answers(Engine(**engine), offering(release, **config)).text == " fox"


@pytest.mark.parametrize(("config", "engine", "told"), BAD.values(), ids=BAD)
def test_a_bad_answer_is_told_in_one_line(
    release: Release, config: dict[str, Any], engine: dict[str, Any], told: str
) -> None:
    with pytest.raises(EngineError) as refused:
        check_answers(Engine(**engine), offering(release, **config))
    assert told in refused.value.what
    assert "\n" not in refused.value.what


def test_the_end_is_forced_in_a_prompt(release: Release) -> None:
    engine = Engine()
    check_answers(engine, offering(release, **CHATTY))
    (tokenize, _), (path, body) = engine.asked
    assert (tokenize, path) == ("/tokenize", COMPLETIONS)
    assert body["logit_bias"] == {"7": 100}


def test_answers_have_room_in_the_context(release: Release) -> None:
    engine = Engine(message=call("{}"))
    check_answers(engine, offering(release, tool_parser="auto"))
    ((path, body),) = engine.asked
    assert (path, body["max_tokens"], body["tool_choice"]) == (CHAT, release.config.context // 2, "required")
