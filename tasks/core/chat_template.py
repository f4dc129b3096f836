"""A model's chat template: where its folder has it, and whether it turns messages into a prompt. Pure.

Engines render it as Transformers does: Jinja in a sandbox, with the special tokens of the tokenizer.
Source: https://huggingface.co/docs/transformers/chat_templating, and `utils/chat_template_utils.py` of 5.23.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tasks.core.digests import digest_of
from tasks.core.errors import ModelError, SlipwayError, SpecError
from tasks.core.given_files import decode_text, read_given

OWN_FILE = "chat_template.jinja"
TEMPLATE_FILES = ("tokenizer_config.json", "chat_template.json")
MORE_TEMPLATES = "additional_chat_templates"
"""Folder of named templates."""

_JSON_LIMIT_BYTES = 64_000_000
_TEMPLATE_LIMIT_BYTES = 1_000_000
_DEFAULT = "default"
_NAME_ANOTHER = "correct it, or name a file with another in serving.chat_template"

_QUESTION = "Which way does the wind turn at noon?"
_USER = {"role": "user", "content": _QUESTION}
_CONVERSATIONS: tuple[tuple[str, list[dict[str, Any]]], ...] = (
    ("a user's message", [_USER]),
    ("a system message", [{"role": "system", "content": "Answer briefly."}, _USER]),
    (
        "a conversation",
        [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello there."}, _USER],
    ),
)
"""The first must render. A template may refuse the others itself (`raise_exception`): some models know neither."""

_ANSWER = "It turns to the west."
_FAULTS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


@dataclass(frozen=True)
class Template:
    """The text of a template, where it was found, and the kind of error if it is wrong."""

    text: str
    where: str
    wrong: type[SlipwayError] = ModelError

    @property
    def digest(self) -> str:
        """Digest of the text."""
        return digest_of({"chat_template": self.text})

    def error(self, why: str) -> SlipwayError:
        """The error for this template."""
        return self.wrong(f"{self.where}: {why}", fix=_NAME_ANOTHER)


class _RefusedError(Exception):
    """The template itself refuses the messages, by `raise_exception`."""


class _Generation(Extension):
    """`{% generation %}`, which marks an assistant's words for training and renders them as they are."""

    tags = {"generation"}  # noqa: RUF012 - as its base class has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def find_template(folder: Path) -> Template | None:
    """The template of the model in `folder`, from the first place that has one; None if none has.

    Of several named ones it is the one named `default`, as in Transformers. Raises `ModelError`.
    """
    if (folder / OWN_FILE).exists():
        return _read(folder / OWN_FILE, ModelError)
    for name in TEMPLATE_FILES:
        path = folder / name
        value = read_json(path).get("chat_template") if path.exists() else None
        if value is not None:
            return Template(_pick(value, str(path)), str(path))
    return None


def other_templates(folder: Path) -> tuple[str, ...]:
    """Names of the model's other templates, beside the one that `find_template` finds."""
    found = {path.stem for path in (folder / MORE_TEMPLATES).glob("*.jinja")}
    if not (folder / OWN_FILE).exists():
        for name in TEMPLATE_FILES:
            path = folder / name
            value = read_json(path).get("chat_template") if path.exists() else None
            if value is not None:
                found |= set(_named(value))
                break
    return tuple(sorted(name[:40] for name in found if name != _DEFAULT))


def read_template(file: Path) -> Template:
    """The template in a file that `serving.chat_template` names. Raises `SpecError`."""
    return _read(file, SpecError)


def render(
    template: Template,
    messages: Sequence[Mapping[str, Any]],
    tokens: Mapping[str, str],
    *,
    answer: bool = True,
) -> str:
    """The prompt for these messages; `tokens` are special ones by name, such as `bos_token`.

    With `answer` it ends where the assistant's answer begins. Raises whatever the template does.
    """
    values = {"tools": None, "documents": None, "add_generation_prompt": answer, **tokens}
    return _environment().from_string(template.text).render(messages=list(messages), **values)


def check_template(template: Template, tokens: Mapping[str, str]) -> str:
    """What the template puts behind an assistant's answer, such as a token that ends it; nothing if it knows none.

    Raises `ModelError` or `SpecError` for a template that does not render, or drops what the user says.
    """
    for number, (what, messages) in enumerate(_CONVERSATIONS):
        try:
            text = _render_as_known(template, messages, tokens)
        except _RefusedError as refused:
            if number:
                continue
            raise template.error(f"the chat template refuses {what}: {_line(refused)}") from None
        except TemplateSyntaxError as error:
            raise template.error(
                f"the chat template is not valid Jinja: {_line(error)} (line {error.lineno})"
            ) from None
        except _FAULTS as error:
            raise template.error(f"the chat template does not render {what}: {_line(error)}") from None
        if _QUESTION not in text:
            raise template.error(f"the chat template renders {what} without the user's words")
    return _closing(template, tokens)


def _closing(template: Template, tokens: Mapping[str, str]) -> str:
    answered = [_USER, {"role": "assistant", "content": _ANSWER}]
    for messages in (answered, _in_parts(answered)):
        with suppress(_RefusedError, *_FAULTS):
            _, found, closing = render(template, messages, tokens, answer=False).rpartition(_ANSWER)
            if found:
                return closing
    return ""


def check_syntax(template: Template) -> None:
    """Raise for a template that is not Jinja: all that can be known without the tokenizer."""
    try:
        _environment().from_string(template.text)
    except TemplateSyntaxError as error:
        raise template.error(
            f"the chat template is not valid Jinja: {_line(error)} (line {error.lineno})"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of the model. Raises `ModelError`."""
    fix = "take the whole model folder"
    content = read_given(
        path, "file", limit_bytes=_JSON_LIMIT_BYTES, fix=fix, missing=ModelError, wrong=ModelError
    )
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {_line(error)}", fix=fix) from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object", fix=fix)
    return value


def _read(path: Path, wrong: type[SlipwayError]) -> Template:
    where = str(path) if wrong is ModelError else f"serving.chat_template {path}"
    content = read_given(
        path,
        "chat template",
        limit_bytes=_TEMPLATE_LIMIT_BYTES,
        fix="give the path of a Jinja file" if wrong is SpecError else _NAME_ANOTHER,
        missing=wrong,
        wrong=wrong,
    )
    return Template(decode_text(content, where, wrong), where, wrong)


def _named(value: Any) -> dict[str, Any]:
    """Templates by name, of a list or mapping of them."""
    if isinstance(value, list):
        return {str(one.get("name")): one.get("template") for one in value if isinstance(one, dict)}
    return {str(name): text for name, text in value.items()} if isinstance(value, dict) else {}


def _pick(value: Any, where: str) -> str:
    """The text of one template, or of the one named `default` in a list or mapping of named ones."""
    if isinstance(value, list | dict):
        value = _named(value)
        if _DEFAULT not in value:
            names = ", ".join(str(name)[:40] for name in value) or "none"
            raise ModelError(
                f"{where} has no chat template named {_DEFAULT} (but: {names})",
                fix="name a file with the template to use in serving.chat_template",
            )
        value = value[_DEFAULT]
    if not isinstance(value, str):
        raise ModelError(f"{where}: chat_template is not a text", fix=_NAME_ANOTHER)
    if len(value) > _TEMPLATE_LIMIT_BYTES:
        raise ModelError(f"{where}: the chat template is longer than 1 MB", fix=_NAME_ANOTHER)
    return value


def _render_as_known(
    template: Template, messages: Sequence[Mapping[str, Any]], tokens: Mapping[str, str]
) -> str:
    """The prompt. Templates of models with images may know contents as lists of parts only."""
    try:
        text = render(template, messages, tokens)
    except (TemplateSyntaxError, _RefusedError):
        raise
    except _FAULTS:
        try:
            return render(template, _in_parts(messages), tokens)
        except (_RefusedError, *_FAULTS):
            pass
        raise
    if _QUESTION in text:
        return text
    try:
        return render(template, _in_parts(messages), tokens)
    except (_RefusedError, *_FAULTS):
        return text


def _in_parts(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in messages]


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = datetime(2026, 1, 1, tzinfo=UTC).strftime
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: object) -> None:
    raise _RefusedError(str(message))


def _line(error: Exception) -> str:
    """What went wrong, in one line without control characters."""
    text = " ".join(str(error).split())
    return "".join(character for character in text if character.isprintable())[:200] or type(error).__name__
