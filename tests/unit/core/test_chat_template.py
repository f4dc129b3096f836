"""Twenty chat models that can be served as they are, and twenty that would answer nonsense, or never end."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from chat_models import (
    CHATML,
    FIRST_IS_SYSTEM,
    GEMMA,
    LLAMA_2,
    LLAMA_3,
    LOOP,
    MACRO,
    PARTS,
    QWEN_3,
    TINY,
    TRAINED,
    TURN,
    chat_model,
    with_values,
    without,
)

from tasks.core.chat_template import Template, check_syntax, find_template, read_template, render
from tasks.core.chat_tokens import chat_in, difference, missing_template, special_tokens
from tasks.core.errors import ModelError, SpecError


@dataclass(frozen=True)
class Model:
    """A model by its difference to the tiny one; `error` is part of the reason why it is refused."""

    name: str
    template: Any = CHATML
    files: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    changes: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        return chat_model(folder / "model", self.template, self.files, **self.changes)


def shifted(tokenizer: Any) -> Any:
    """The tokenizer of another model: more words, but the same end of text."""
    tokenizer["model"]["vocab"] = {word: at + 40 for word, at in tokenizer["model"]["vocab"].items()}
    return tokenizer


def cut(tokenizer: Any) -> Any:
    """The same with a few words only, and no end of text."""
    tokenizer["model"]["vocab"] = {
        word: at for word, at in tokenizer["model"]["vocab"].items() if 0 < at < 300
    }
    return {**tokenizer, "added_tokens": [{"id": 300, "content": "</s>", "special": True}]}


def unigram(tokenizer: Any) -> Any:
    words = sorted(tokenizer["model"]["vocab"].items(), key=lambda pair: pair[1])
    return {**tokenizer, "model": {"type": "Unigram", "vocab": [[word, -1.0] for word, _ in words]}}


GOOD = (
    Model("ChatML"),
    Model("Llama 2: roles alternate", LLAMA_2),
    Model("Gemma: no system message", GEMMA),
    Model("Llama 3: a date and tools", LLAMA_3),
    Model("Qwen 3: namespace, break, slices", QWEN_3),
    Model("contents are parts only", PARTS),
    Model("a system message of its own", FIRST_IS_SYSTEM),
    Model("a macro", MACRO),
    Model("marks for training", TRAINED),
    Model("everything as JSON", "{{ messages | tojson }}"),
    Model(
        "named ones", [{"name": "tool_use", "template": "{% broken"}, {"name": "default", "template": CHATML}]
    ),
    Model("named ones in a mapping", {"default": CHATML}),
    Model("a file of its own", None, {"chat_template.jinja": CHATML}),
    Model("a file that comes first", "{% broken", {"chat_template.jinja": CHATML}),
    Model("chat_template.json", None, {"chat_template.json": json.dumps({"chat_template": CHATML})}),
    Model("several ends", changes={"generation_config": with_values(eos_token_id=[9999, 0])}),
    Model(
        "the end in text_config",
        changes={
            "generation_config": without("eos_token_id"),
            "config": lambda value: {"text_config": {"eos_token_id": 0, "vocab_size": 2048}},
        },
    ),
    Model(
        "an end that the tokenizer alone names",
        changes={
            "generation_config": without("eos_token_id"),
            "config": without("eos_token_id"),
        },
    ),
    Model("an end that the configuration alone names", changes={"tokenizer_config": without("eos_token")}),
    Model("a vocabulary in a list", changes={"tokenizer": unigram}),
)

SYNTAX = "is not valid Jinja"
BROKEN = (
    Model("never closed", "{% for message in messages %}" + TURN, error=SYNTAX),
    Model("an unknown tag", "{% answer %}" + LOOP, error=SYNTAX),
    Model("an unknown filter", "{{ messages | shout }}", error=SYNTAX),
    Model("cut off", CHATML[:60], error=SYNTAX),
    Model(
        "a value that is not there", "{{ messages[0].content.parts.text }}", error="does not render a user's"
    ),
    Model("a function that is not there", "{{ now() }}" + LOOP, error="'now' is undefined"),
    Model("text and number", "{{ messages | length + '' }}", error="does not render a user's message"),
    Model("reaches for Python", "{{ ''.__class__.__mro__[1].__subclasses__() }}", error="unsafe"),
    Model("refuses users", "{{ raise_exception('no users') }}", error="refuses a user's message: no users"),
    Model(
        "drops what users say",
        "{% for m in messages %}{{ m.role }}{% endfor %}",
        error="without the user's words",
    ),
    Model(
        "forgets what follows",
        "{{ messages[0].content }}",
        error="renders a system message without the user's",
    ),
    Model(
        "fails with history",
        "{{ messages[0].content }}{% if messages[2] %}{{ 1 / 0 }}{% endif %}" + LOOP,
        error="does not render a conversation: division by zero",
    ),
    Model("empty", "", error="without the user's words"),
    Model("a number", 7, error="is not a text"),
    Model("no default", [{"name": "tool_use", "template": CHATML}], error="no chat template named default"),
    Model(
        "another model's tokenizer",
        changes={"tokenizer": shifted, "tokenizer_config": without("added_tokens_decoder")},
        error="has tokens up to",
    ),
    Model(
        "a tokenizer without the end",
        changes={"tokenizer": cut, "tokenizer_config": without("added_tokens_decoder")},
        error="has no such token",
    ),
    Model(
        "an end that is an ordinary word",
        changes={"generation_config": with_values(eos_token_id=700)},
        error="is the ordinary token",
    ),
    Model(
        "an end that does not exist",
        changes={"generation_config": with_values(eos_token_id=151645)},
        error="token 151645 should end an answer",
    ),
    Model(
        "no end",
        changes={
            "generation_config": without("eos_token_id"),
            "config": without("eos_token_id"),
            "tokenizer_config": without("eos_token"),
        },
        error="answers would never end",
    ),
)


def test_there_are_twenty_of_each() -> None:
    assert (len(GOOD), len(BROKEN)) == (20, 20)


@pytest.mark.parametrize("model", GOOD, ids=lambda model: model.name)
def test_a_good_model_is_served_with_its_template(model: Model, tmp_path: Path) -> None:
    assert chat_in(model.write(tmp_path)) is not None


@pytest.mark.parametrize("model", BROKEN, ids=lambda model: model.name)
def test_a_broken_model_is_refused_in_one_line(model: Model, tmp_path: Path) -> None:
    folder = model.write(tmp_path)
    with pytest.raises(ModelError) as refused:
        chat_in(folder)
    assert model.error in refused.value.what
    assert str(folder) in refused.value.what
    assert "\n" not in refused.value.what
    assert refused.value.fix


def test_a_model_without_a_template_is_not_judged(tmp_path: Path) -> None:
    folder = chat_model(tmp_path / "model", None, generation_config=with_values(eos_token_id=151645))
    assert chat_in(folder) is None
    assert chat_in(TINY) is None


def test_the_default_is_chosen_of_named_ones(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "B"}, {"name": "default", "template": "A"}]
    found = find_template(chat_model(tmp_path / "model", named))
    assert found is not None
    assert found.text == "A"
    assert found.digest == Template("A", "elsewhere").digest != Template("B", "elsewhere").digest


def test_a_file_of_the_user_replaces_a_broken_template(tmp_path: Path) -> None:
    folder = chat_model(tmp_path / "model", "{% broken")
    given = tmp_path / "mine.jinja"
    given.write_text(CHATML)
    chat = chat_in(folder, given)
    assert chat is not None
    assert (chat.template.text, chat.ends_with) == (CHATML, "<|im_end|>")
    given.write_text("{% broken")
    with pytest.raises(
        SpecError, match=r"serving.chat_template .*mine.jinja: the chat template is not valid Jinja"
    ):
        chat_in(folder, given)
    with pytest.raises(SpecError, match="line 1"):
        check_syntax(read_template(given))
    with pytest.raises(SpecError, match="no chat template"):
        read_template(tmp_path / "gone.jinja")


def test_special_tokens_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    more = {"special_tokens_map.json": json.dumps({"eos_token": "old", "sep_token": {"content": "<sep>"}})}
    extra = with_values(extra_special_tokens={"image_token": "<image>"})
    tokens = special_tokens(chat_model(tmp_path / "model", files=more, tokenizer_config=extra))
    assert tokens == {
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "sep_token": "<sep>",
        "image_token": "<image>",
    }


def test_a_prompt_is_what_transformers_renders() -> None:
    """Line breaks after blocks and spaces before them go, and JSON keeps its letters."""
    template = Template(
        "  {% if true %}\n{{ bos_token }}{{ {'a': 'é<'} | tojson }}\n  {% endif %}\nend", "here"
    )
    assert render(template, [], {"bos_token": "<s>"}) == '<s>{"a": "é<"}\nend'


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_files_that_are_not_json_are_named(name: str, tmp_path: Path) -> None:
    folder = chat_model(tmp_path / "model", None, {"chat_template.jinja": CHATML, name: "{"})
    with pytest.raises(ModelError, match=rf"{name} is not JSON"):
        chat_in(folder)


def test_a_tokenizer_of_another_form_is_refused(tmp_path: Path) -> None:
    folder = chat_model(tmp_path / "model", tokenizer=lambda _: {"model": {"vocab": [[]]}})
    with pytest.raises(ModelError, match="is not a tokenizer of the tokenizers library"):
        chat_in(folder)


def test_other_kinds_of_tokenizers_are_judged_by_their_settings(tmp_path: Path) -> None:
    folder = chat_model(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    assert chat_in(folder) is not None


def test_a_model_in_one_file_is_judged_by_the_form_of_the_template(tmp_path: Path) -> None:
    given = tmp_path / "mine.jinja"
    given.write_text("{{ bos_token + messages[0].content }}")
    assert chat_in(tmp_path, given) is not None
    given.write_text("{{ bos_token + }}")
    with pytest.raises(SpecError, match="is not valid Jinja"):
        chat_in(tmp_path, given)


NAMED = [{"name": "tool_use", "template": CHATML}, {"name": "default", "template": CHATML}]


@pytest.mark.parametrize(
    ("template", "files", "told"),
    [
        (NAMED, {}, "templates named tool_use: engines"),
        (CHATML, {"additional_chat_templates/rag.jinja": CHATML}, "templates named rag: engines"),
        (CHATML, {"generation_config.json": '{"eos_token_id": 0}'}, "ends answers with '<|im_end|>', where"),
        (CHATML, {"generation_config.json": '{"eos_token_id": [0, 2043]}'}, ""),
        (CHATML.replace("im_end", "endoftext"), {}, ""),
    ],
)
def test_what_users_should_know_is_found(
    template: Any, files: Mapping[str, str], told: str, tmp_path: Path
) -> None:
    stops = {"generation_config.json": '{"eos_token_id": 2043}'}
    folder = chat_model(tmp_path / "model")
    (folder / "additional_chat_templates").mkdir()
    folder = chat_model(tmp_path / "model", template, {**stops, **files})
    chat = chat_in(folder)
    assert chat is not None
    assert [told in finding for finding in chat.findings] == [True] * bool(told)


def test_an_end_that_the_tokenizer_does_not_have_is_another_models(tmp_path: Path) -> None:
    folder = chat_model(tmp_path / "model", CHATML.replace("im_end", "eot"))
    with pytest.raises(
        ModelError, match=r"ends answers with '<\|eot\|>', which the model's tokenizer does not have"
    ):
        chat_in(folder)


def test_a_candidate_with_another_template_than_its_baseline_is_told() -> None:
    here, there = Template("A", "candidate"), Template("B", "baseline")
    assert difference(here, Template("A", "baseline")) is None
    assert difference(None, None) is None
    assert difference(here, there) == (
        "candidate has another chat template than baseline: quality was measured on other prompts"
    )
    assert str(difference(None, there)).startswith("the candidate has no chat template, unlike baseline")
    assert str(difference(here, None)).startswith("the baseline has no chat template, unlike candidate")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("file:/models/gemma-3-270m-it", True),
        ("file:/models/Llama-3.2-1B-Instruct-GGUF/x.gguf", True),
        ("s3://models/qwen-chat#q4_k_m", True),
        ("Mistral 7B Instruct v0.3", True),
        ("file:/models/gemma-3-270m", False),
        ("file:/models/chatty-italian", False),
    ],
)
def test_a_model_that_was_trained_to_chat_is_known_by_its_name(name: str, told: bool) -> None:
    assert (missing_template(["", name]) is not None) == told
