"""The chat template and the special tokens in the header of a GGUF model. Pure.

llama.cpp renders the template with Jinja, and stops at `eos_token_id`, `eot_token_id`, `eom_token_id` and at tokens
that it knows by name (src/llama-vocab.cpp, `special_eog_ids`).
"""

from __future__ import annotations

import re
from pathlib import Path

from tasks.core.chat_template import Template, check_template, read_template
from tasks.core.chat_tokens import Chat, Check, Vocabulary, other_templates_finding, turn_end
from tasks.core.errors import ModelError
from tasks.core.gguf import GgufHeader

_TEMPLATE = "tokenizer.chat_template"
_ROLES = {
    "bos_token": "bos", "eos_token": "eos", "eot_token": "eot", "unk_token": "unknown", "pad_token": "padding",
    "sep_token": "seperator", "cls_token": "cls", "mask_token": "mask",
}  # fmt: skip
"""Special tokens as templates call them, and as the header does (`seperator` is the format's own spelling)."""

_ENDS = ("eos", "eot", "eom")
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
"""Kinds of tokens (gguf 0.19.0, `TokenType`)."""

_LOOKS_SPECIAL = re.compile(r"<.+>|\[[A-Z_]+\]")
_ANOTHER = "convert the model again, with its own tokenizer"


def gguf_chat(
    header: GgufHeader, where: str, replacement: Path | None = None, check: Check = check_template
) -> Chat | None:
    """How the model with this header is asked: with `replacement`, or the template in the header; None without one.

    Raises `ModelError` or `SpecError` as `tasks.core.chat_tokens.chat_in` does.
    """
    own = header.text(_TEMPLATE)
    if replacement is not None:
        template = read_template(replacement)
    elif own is not None:
        template = Template(own, where)
    else:
        return None
    vocabulary = vocabulary_of(header)
    closing = check(template, special_tokens_of(header))
    _check_stop(header, vocabulary, where)
    _check_size(header, where)
    end = turn_end(template, closing, vocabulary, special_tokens_of(header).get("eos_token"))
    others = sorted(
        key.removeprefix(f"{_TEMPLATE}.")[:40] for key in header.values if key.startswith(f"{_TEMPLATE}.")
    )
    return Chat(template, end, () if replacement else other_templates_finding(others))


def vocabulary_of(header: GgufHeader) -> Vocabulary:
    """Its tokens; without their kinds, all are ordinary ones but those that end answers."""
    tokens, types = header.tokens, header.token_types
    special = {number for number, kind in enumerate(types) if kind in (_CONTROL, _USER_DEFINED)}
    if not types:
        special = set(_ends(header).values())
    return Vocabulary(
        ordinary={number: token for number, token in enumerate(tokens) if number not in special},
        added={number: token for number, token in enumerate(tokens) if number in special},
    )


def special_tokens_of(header: GgufHeader) -> dict[str, str]:
    """The special tokens that have a name, as templates use them."""
    tokens = header.tokens
    ids = {role: header.number(f"tokenizer.ggml.{name}_token_id") for role, name in _ROLES.items()}
    return {role: tokens[at] for role, at in ids.items() if at is not None and 0 <= at < len(tokens)}


def _ends(header: GgufHeader) -> dict[str, int]:
    found = {name: header.number(f"tokenizer.ggml.{name}_token_id") for name in _ENDS}
    return {name: number for name, number in found.items() if number is not None}


def _check_stop(header: GgufHeader, vocabulary: Vocabulary, where: str) -> None:
    ends = _ends(header)
    if not ends:
        raise ModelError(
            f"{where}: nothing says which token ends an answer, so answers would never end",
            fix="set tokenizer.ggml.eos_token_id in the file, or convert the model again",
        )
    wrong = {
        name: number
        for name, number in ends.items()
        if number not in vocabulary.added and not _may_end(header, number)
    }
    if len(wrong) == len(ends):
        name, number = next(iter(wrong.items()))
        word = vocabulary.ordinary.get(number)
        what = "does not exist" if word is None else f"is the ordinary token {word[:40]!r}"
        raise ModelError(f"{where}: {name}_token_id is {number}, but that {what}", fix=_ANOTHER)


def _may_end(header: GgufHeader, number: int) -> bool:
    """Whether that token exists, and is not part of ordinary text: llama.cpp does not mind a wrong kind."""
    tokens, types = header.tokens, header.token_types
    if not 0 <= number < len(tokens):
        return False
    return number >= len(types) or types[number] != _NORMAL or bool(_LOOKS_SPECIAL.fullmatch(tokens[number]))


def _check_size(header: GgufHeader, where: str) -> None:
    """llama.cpp reads the embeddings of as many tokens as the tokenizer has."""
    embedding = next((one for one in header.tensors if one.name == "token_embd.weight"), None)
    rows = embedding.shape[1] if embedding and len(embedding.shape) > 1 else None
    tokens = header.lengths.get("tokenizer.ggml.tokens") or 0
    if rows is not None and tokens != rows:
        raise ModelError(
            f"{where}: its tokenizer has {tokens} tokens, but the model has {rows}: it is another model's",
            fix=_ANOTHER,
        )
