"""Chat templates and special tokens in GGUF headers: those that can be served, and those that are refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from chat_models import CHATML
from small_gguf import KEYS, gguf_bytes

from tasks.core.errors import ModelError, SpecError
from tasks.core.gguf import GgufHeader, read_gguf
from tasks.core.gguf_chat import gguf_chat, special_tokens_of

NORMAL, CONTROL = 1, 3
TOKENS = ["a", "b", "<|im_start|>", "<|im_end|>", "<s>", "</s>"]
WHOLE: dict[str, Any] = {
    **KEYS,
    "tokenizer.chat_template": CHATML,
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [NORMAL, NORMAL, *[CONTROL] * 4],
    "tokenizer.ggml.bos_token_id": 4,
    "tokenizer.ggml.eos_token_id": 5,
}
TENSORS = {"token_embd.weight": ((256, len(TOKENS)), 12)}
LAST = "{{ messages[-1].content }}"
FIRST_AND_LAST = "{{ messages[0].content }}" + LAST


def header(**changes: Any) -> GgufHeader:
    keys = {**WHOLE, **{f"tokenizer.{name.replace('__', '.')}": value for name, value in changes.items()}}
    data = gguf_bytes({name: value for name, value in keys.items() if value is not None}, TENSORS)
    return read_gguf(lambda at, length: data[at : at + length], len(data), "m.gguf")


@dataclass(frozen=True)
class Row:
    name: str
    ends_with: str = ""
    error: str = ""
    changes: dict[str, Any] = field(default_factory=dict)


ROWS = (
    Row("ChatML", "<|im_end|>"),
    Row("no token behind an answer", "</s>", changes={"chat_template": LAST}),
    Row("the end of text", "</s>", changes={"chat_template": LAST + "{{ eos_token }}"}),
    Row("without kinds of tokens", "</s>", changes={"ggml__token_type": None, "chat_template": LAST}),
    Row("an end of turn alone", "<|im_end|>", changes={"ggml__eos_token_id": None, "ggml__eot_token_id": 3}),
    Row("not Jinja", error="is not valid Jinja", changes={"chat_template": "{% for"}),
    Row("does not render", error="does not render a user's message", changes={"chat_template": "{{ 1 / 0 }}"}),
    Row("drops users", error="without the user's words", changes={"chat_template": "Hello"}),
    Row("no end", error="nothing says which token ends an answer", changes={"ggml__eos_token_id": None}),
    Row("an end that is not there", error="eos_token_id is 7, but that does not exist", changes={"ggml__eos_token_id": 7}),
    Row("an end in ordinary text", error="is the ordinary token 'b'", changes={"ggml__eos_token_id": 1}),
    Row(
        "an end that the tokenizer does not have",
        error="ends answers with '<|eot|>', which the model's tokenizer does not have",
        changes={"chat_template": CHATML.replace("im_end", "eot")},
    ),
    Row(
        "more tokens than embeddings",
        error="its tokenizer has 7 tokens, but the model has 6",
        changes={"ggml__tokens": [*TOKENS, "c"], "ggml__token_type": [NORMAL, NORMAL, *[CONTROL] * 4, NORMAL]},
    ),
)  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_header_is_judged(row: Row) -> None:
    if row.error:
        with pytest.raises(ModelError) as refused:
            gguf_chat(header(**row.changes), "m.gguf")
        assert row.error in refused.value.what
        assert refused.value.what.startswith("m.gguf: ")
        assert "\n" not in refused.value.what
        assert refused.value.fix
    else:
        chat = gguf_chat(header(**row.changes), "m.gguf")
        assert chat is not None
        assert (chat.ends_with, chat.findings) == (row.ends_with, ())


def test_a_model_without_a_template_is_not_judged() -> None:
    assert gguf_chat(header(chat_template=None, ggml__eos_token_id=None), "m.gguf") is None


def test_a_file_of_the_users_replaces_the_template(tmp_path: Path) -> None:
    given = tmp_path / "mine.jinja"
    given.write_text("{{ bos_token }}" + LAST)
    chat = gguf_chat(header(chat_template=None), "m.gguf", given)
    assert chat is not None
    assert chat.template.text == given.read_text()
    given.write_text("{{ 1 / 0 }}")
    with pytest.raises(SpecError, match="does not render"):
        gguf_chat(header(), "m.gguf", given)


def test_other_templates_are_told() -> None:
    chat = gguf_chat(header(chat_template__tool_use=LAST), "m.gguf")
    assert chat is not None
    (finding,) = chat.findings
    assert "named tool_use" in finding


def test_special_tokens_have_the_names_that_templates_use() -> None:
    assert special_tokens_of(header()) == {"bos_token": "<s>", "eos_token": "</s>"}
    assert special_tokens_of(header(ggml__bos_token_id=99)) == {"eos_token": "</s>"}


@pytest.mark.parametrize("changes", [{"ggml__tokens": [1, 2]}, {"ggml__token_type": ["a"]}], ids=str)
def test_a_vocabulary_of_another_type_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="has values of another type"):
        header(**changes)


def test_the_vocabulary_is_read_by_id() -> None:
    assert header().tokens == tuple(TOKENS)
    assert header().token_types == (1, 1, 3, 3, 3, 3)
    assert header(ggml__tokens=None, ggml__token_type=None).tokens == ()
