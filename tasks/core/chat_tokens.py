"""The special tokens of a chat model, and whether its answers can end with them. Pure.

An engine without a stop token answers until its limit, and one with another model's tokenizer answers nonsense; both
look well to `/health`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.core.chat_template import (
    Template,
    check_syntax,
    check_template,
    find_template,
    other_templates,
    read_json,
    read_template,
)
from tasks.core.errors import ModelError
from tasks.core.paths import some_of

_CONFIG = "config.json"
_TOKENIZER = "tokenizer.json"
_SETTINGS = "tokenizer_config.json"
_MAP = "special_tokens_map.json"
TOKEN_FILES = (_TOKENIZER, _SETTINGS, _MAP, "generation_config.json")
"""The files that special tokens are read from, with `config.json`."""

_NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_MARKER = re.compile(r"<[|｜][^<>|｜\s]{1,40}[|｜]>|<end_of_turn>|</s>|<eos>")
"""What templates end turns with; all are tokens."""

_TUNED = re.compile(r"(?:^|[-_./ ])(?:it|instruct|chat|assistant)(?=$|[-_./ #@])", re.IGNORECASE)
_WHOLE = "take all files of the model's folder from the same version of the model"


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of `tokenizer.json` by id: `ordinary` ones, and those that text never becomes by chance."""

    ordinary: Mapping[int, str]
    added: Mapping[int, str]

    def __contains__(self, word: str) -> bool:
        return word in self.added.values() or word in self.ordinary.values()


Check = Callable[[Template, Mapping[str, str]], str]
"""How a template is judged: `check_template`, or the same in a process of its own."""


@dataclass(frozen=True)
class Chat:
    """How a model chats: its template, the token that ends an answer, and what users should know.

    That token is the one that the template puts behind an answer, else the tokenizer's; None if neither is known.
    """

    template: Template
    ends_with: str | None = None
    findings: tuple[str, ...] = ()


def chat_in(folder: Path, replacement: Path | None = None, check: Check = check_template) -> Chat | None:
    """How the model in `folder` is asked: with `replacement`, or its own template; None without one.

    Raises `ModelError` or `SpecError` for a template that does not render, and `ModelError` if answers cannot end, or
    if the tokenizer is another model's.
    """
    template = read_template(replacement) if replacement else find_template(folder)
    if template is None:
        return None
    if not (folder / _CONFIG).exists():  # its tokenizer is inside its weights
        check_syntax(template)
        return Chat(template)
    closing = check(template, special_tokens(folder))
    check_stop(folder)
    word = special_tokens(folder).get("eos_token")
    findings = [] if replacement else [*other_templates_finding(other_templates(folder))]
    if not (folder / _TOKENIZER).exists():
        return Chat(template, word, tuple(findings))
    vocabulary = _vocabulary(folder)
    end = turn_end(template, closing, vocabulary, word)
    if end is not None and end not in (word, *_stop_words(folder, vocabulary)):
        findings.append(
            f"the chat template ends answers with {end!r}, where generation_config.json does not stop: "
            "answers may go on until their limit"
        )
    return Chat(template, end, tuple(findings))


def difference(served: Template | None, baseline: Template | None) -> str | None:
    """The finding for a candidate that is not asked as its baseline is; None if both have the same template."""
    if served is None or baseline is None:
        if (served or baseline) is None:
            return None
        lacking, other = (served, baseline) if served is None else (baseline, served)
        what = "the candidate" if lacking is served else "the baseline"
        assert other is not None
        return f"{what} has no chat template, unlike {other.where}: quality was measured on other prompts"
    if served.digest == baseline.digest:
        return None
    return f"{served.where} has another chat template than {baseline.where}: quality was measured on other prompts"


def missing_template(names: Iterable[str]) -> str | None:
    """The finding for a model without a chat template if one of its names says that it was trained to chat."""
    tuned = next((name for name in names if _TUNED.search(name)), None)
    if tuned is None:
        return None
    return (
        f"{tuned[:80]} was trained to chat, by its name, but has no chat template: it is asked to complete prompts; "
        "name a template in serving.chat_template"
    )


def turn_end(
    template: Template, closing: str, vocabulary: Vocabulary, eos_token: str | None = None
) -> str | None:
    """The token that the template puts behind an answer; `eos_token` if it puts text, or nothing.

    Raises an error for what looks like a token, but is not in the vocabulary: answers could not end with it.
    """
    text = closing.lstrip()
    words = [*vocabulary.added.values(), eos_token or ""]
    found = max((word for word in words if word and text.startswith(word)), key=len, default=None)
    if found is None and (marker := _MARKER.match(text)):
        found = marker[0]
        if found not in vocabulary:
            raise template.error(
                f"the chat template ends answers with {found!r}, which the model's tokenizer does not have"
            )
    return found or eos_token


def _stop_words(folder: Path, vocabulary: Vocabulary) -> list[str | None]:
    ids = _ids(_optional(folder / "generation_config.json")) or _ids(_optional(folder / _CONFIG))
    return [vocabulary.added.get(one) or vocabulary.ordinary.get(one) for one in ids]


def other_templates_finding(names: Sequence[str]) -> tuple[str, ...]:
    """The finding for templates that are not served by default."""
    if not names:
        return ()
    return (
        f"the model also has chat templates named {some_of(names)}: engines use tool_use for requests with tools, "
        "and no other",
    )


def special_tokens(folder: Path) -> dict[str, str]:
    """The special tokens that have a name, such as `eos_token`, which templates use."""
    found: dict[str, str] = {}
    for name in (_MAP, _SETTINGS):
        settings = _optional(folder / name)
        named = {f"{role}_token": settings.get(f"{role}_token") for role in _NAMED}
        extra = settings.get("extra_special_tokens")
        named |= extra if isinstance(extra, dict) else {}
        found |= {role: word for role, value in named.items() if (word := _word(value))}
    return found


def check_stop(folder: Path) -> None:
    """Raise `ModelError` if no token that ends an answer is in the vocabulary, or that is another model's.

    A tokenizer of another kind than `tokenizer.json` is judged by its settings alone.
    """
    config = _optional(folder / _CONFIG)
    ids = _ids(_optional(folder / "generation_config.json")) or _ids(config)
    word = special_tokens(folder).get("eos_token")
    if not ids and word is None:
        raise ModelError(
            f"{folder}: nothing says which token ends an answer, so answers would never end",
            fix="set eos_token_id in generation_config.json, or eos_token in tokenizer_config.json",
        )
    if not (folder / _TOKENIZER).exists():
        return
    vocabulary = _vocabulary(folder)
    if word is not None and word not in vocabulary:
        raise ModelError(
            f"{folder}: {_SETTINGS} says that {word[:80]!r} ends an answer, but {_TOKENIZER} has no such token",
            fix=_WHOLE,
        )
    if ids and not any(one in vocabulary.added or vocabulary.ordinary.get(one) == word for one in ids):
        raise ModelError(_why_none_ends(folder, ids, vocabulary), fix=_WHOLE)
    _check_size(folder, config, vocabulary)


def _why_none_ends(folder: Path, ids: tuple[int, ...], vocabulary: Vocabulary) -> str:
    first = ids[0]
    if first in vocabulary.ordinary:
        what = f"is the ordinary token {vocabulary.ordinary[first][:40]!r}"
    else:
        what = "does not exist"
    return (
        f"{folder}: token {first} should end an answer, but in {_TOKENIZER} it {what}: it is another model's"
    )


def _check_size(folder: Path, config: Mapping[str, Any], vocabulary: Vocabulary) -> None:
    """Ordinary text may not become tokens that the model has no embedding for. Added tokens beyond them exist in real
    models, for padding, and are never sent."""
    text = config.get("text_config")
    size = config.get("vocab_size") or (text.get("vocab_size") if isinstance(text, dict) else None)
    largest = max(vocabulary.ordinary, default=0)
    if isinstance(size, int) and not isinstance(size, bool) and largest >= size:
        raise ModelError(
            f"{folder}: {_TOKENIZER} has tokens up to {largest}, but the model only has {size}: "
            "it is another model's",
            fix=_WHOLE,
        )


def _vocabulary(folder: Path) -> Vocabulary:
    path = folder / _TOKENIZER
    tokenizer = read_json(path)
    try:
        vocab = (tokenizer.get("model") or {}).get("vocab") or {}
        if isinstance(vocab, list):  # Unigram: pairs of a token and its score
            vocab = {pair[0]: number for number, pair in enumerate(vocab)}
        added = {int(one["id"]): str(one["content"]) for one in tokenizer.get("added_tokens") or []}
        declared = _optional(folder / _SETTINGS).get("added_tokens_decoder") or {}
        added |= {int(number): str(one["content"]) for number, one in declared.items()}
        ordinary = {int(number): str(word) for word, number in vocab.items() if int(number) not in added}
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        raise ModelError(f"{path} is not a tokenizer of the tokenizers library", fix=_WHOLE) from None
    return Vocabulary(ordinary, added)


def _ids(settings: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that end an answer: one, or a list. A model with images has them in `text_config`."""
    value = settings.get("eos_token_id")
    text = settings.get("text_config")
    if value is None and isinstance(text, dict):
        value = text.get("eos_token_id")
    values = value if isinstance(value, list) else [value]
    return tuple(one for one in values if isinstance(one, int) and not isinstance(one, bool))


def _word(value: object) -> str | None:
    word = value.get("content") if isinstance(value, dict) else value
    return word if isinstance(word, str) and word else None


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
