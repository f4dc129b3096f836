"""Twenty chat releases that can be served, and twenty that cannot, at the gate of the real engine.

Each is judged as a deploy does: by the file's header first, then by the answers of an engine that serves it. The model
is tiny, so an answer is judged by its form.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    REASONS,
    TURN,
    chat_model,
)
from gguf_edit import edited, texts_in
from releases import make_release

from blocks.candidates.candidate_worker import make_gguf
from blocks.engine.api import EngineApi
from blocks.engine.bench import EngineBench
from tasks.core.errors import EngineError, ModelError, SpecError
from tasks.core.gguf import TOKEN_TYPES, TOKENS, read_gguf
from tasks.core.gguf_chat import gguf_chat
from tasks.core.serving import ChatTemplate, ServingConfig
from tasks.core.spec_kinds import CandidateFormat
from tasks.engines.llama_cpp import LlamaCpp
from tasks.quantization.recipe import RECIPES
from tasks.rollout.gate import check_answers

pytestmark = pytest.mark.engine

TEMPLATE = "tokenizer.chat_template"
MODEL, PRE, MERGES, EOS, EOT = (
    f"tokenizer.ggml.{key}" for key in ("model", "pre", "merges", "eos_token_id", "eot_token_id")
)
NORMAL, CONTROL, SIZE = 1, 3, 2048
IM_END, EOT_ID = 2043, 2045
LLAMA_31 = "{%- if not tools is defined %}{%- set tools = none %}{%- endif %}" + LLAMA_3
UNSTOPPED = CHATML.replace("im_end", "im_start")


@dataclass(frozen=True)
class Row:
    """A release by its difference to one that chats in ChatML. `header` or `gate` is part of the reason why it is
    refused there; `swapped` is a template that takes the place of the judged one, `ends_with` another end."""

    name: str
    template: str = CHATML
    header: str = ""
    gate: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)
    tokens: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    given: str = ""
    swapped: str = ""
    ends_with: str = ""


GOOD = (
    Row("ChatML"),
    Row("Llama 2: roles alternate", LLAMA_2),
    Row("Llama 3: a date and tools", LLAMA_31),
    Row("Gemma: no system message", GEMMA),
    Row("Qwen 3: namespace, break, slices", QWEN_3),
    Row("contents are parts only", PARTS),
    Row("a system message of its own", FIRST_IS_SYSTEM),
    Row("a macro", MACRO),
    Row("a message as JSON", "{{ messages[-1] | tojson }}" + LOOP),
    Row("text without a token at its end", "{% for message in messages %}" + TURN + "\n{% endfor %}"),
    Row("the end of text behind each turn", LOOP),
    Row("another template for tools", changes={f"{TEMPLATE}.tool_use": CHATML}),
    Row("the end of turn is the end of text", changes={EOS: IM_END}),
    Row("an end of turn of its own", LLAMA_31, changes={EOT: EOT_ID}),
    Row("no kinds of tokens", changes={TOKEN_TYPES: [NORMAL] * SIZE}),
    Row("a beginning of text", "{{ bos_token }}" + CHATML, changes={"tokenizer.ggml.add_bos_token": True}),
    Row("a file of the user's", "{% broken", given=CHATML),
    Row("several names", config={"names": ("org/model:tag", "gpt-4")}),
    Row("answers that follow a schema", config={"structured_output": "auto"}),
    Row("reasoning", REASONS, config={"reasoning_parser": "auto"}),
)

BROKEN = (
    Row("never closed", "{% for message in messages %}" + TURN, header="is not valid Jinja"),
    Row("does not render", "{{ messages[0].content.parts.text }}", header="does not render a user's message"),
    Row(
        "drops what users say", "{% for m in messages %}{{ m.role }}{% endfor %}", header="without the user's"
    ),
    Row("refuses users", "{{ raise_exception('no users') }}", header="refuses a user's message: no users"),
    Row("fails with history", "{{ messages[2].x.y if messages[2] }}" + LOOP, header="does not render a conv"),
    Row("a file of the user's that is broken", given="{% broken", header="is not valid Jinja"),
    Row("no end", changes={EOS: None}, header="nothing says which token ends an answer"),
    Row("an end that does not exist", changes={EOS: 151645}, header="does not exist"),
    Row("an end in ordinary text", changes={EOS: 700}, header="is the ordinary token"),
    Row("another model's end of turn", CHATML.replace("im_end", "eot"), header="tokenizer does not have"),
    Row("another tokenizer of the same size", tokens="turned around", header="is the ordinary token"),
    Row("a larger tokenizer", tokens="one more", header="has 2049 tokens, but the model has 2048"),
    Row("an end of turn that is none", UNSTOPPED, gate="does not stop at '<|im_start|>'"),
    Row("what the engine's Jinja lacks", "{{ messages[-1].content.zfill(99) }}", gate="died while starting"),
    Row("an unknown way to cut text", changes={PRE: "nobody"}, gate="died while starting"),
    Row("an unknown kind of tokenizer", changes={MODEL: "nobody"}, gate="died while starting"),
    Row("a tokenizer without merges", changes={MERGES: None}, gate="died while starting"),
    Row("another template than was judged", swapped="Hello.", gate="drops what users say"),
    Row("another tokenizer than was judged", ends_with="<|eot|>", gate="tokenizer makes 6 tokens of it"),
    Row("tools without a template for them", config={"tool_parser": "auto"}, gate="has no tool call"),
)


@pytest.fixture(scope="module")
def model(engine_python: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The tiny model with a chat template, as GGUF."""
    folder = tmp_path_factory.mktemp("gate")
    file = folder / "model.gguf"
    worker = RECIPES["gguf-file"].worker
    make_gguf(engine_python, worker, chat_model(folder / "model"), CandidateFormat.Q4_0, file)
    return file.read_bytes()


def why_refused_at_the_gate(row: Row, model: bytes, python: Path, folder: Path) -> str | None:
    """None for a release that passes. Raises `ModelError` for one that the header tells."""
    tokens = {
        "turned around": lambda all: [*all[100:], *all[:100]],
        "one more": lambda all: [*all, all[1]],
    }.get(row.tokens)
    changes = {TEMPLATE: row.template, **row.changes}
    if tokens:
        types = [NORMAL if number in range(1, IM_END - 1) else CONTROL for number in range(SIZE)]
        changes |= {TOKENS: tokens(texts_in(model, TOKENS)), TOKEN_TYPES: tokens(types)}
    data = edited(model, changes)
    file = folder / "model.gguf"
    file.write_bytes(data)
    given = folder / "mine.jinja" if row.given or row.swapped else None
    if given:
        given.write_text(row.given or row.template)
    header = read_gguf(lambda at, length: data[at : at + length], len(data), "model.gguf")
    chat = gguf_chat(header, "model.gguf", given)
    assert chat is not None
    if given and row.swapped:
        given.write_text(row.swapped)
    template = ChatTemplate(
        digest=chat.template.digest, file=given, ends_with=row.ends_with or chat.ends_with
    )
    config = ServingConfig(served_name="tiny", batch=1, context=256, threads=1, chat=template, **row.config)
    release = make_release(python, file).model_copy(update={"config": config})
    try:
        with EngineBench(engine=LlamaCpp(), python=python).serve(file, config, folder / "log") as engine:
            try:
                with EngineApi(engine.base_url) as api:
                    assert check_answers(api, release).text
            except EngineError as error:  # kept: the engine lives, so its end is not awaited as the reason
                return error.what
    except EngineError as error:
        return error.what
    return None


def test_there_are_twenty_of_each() -> None:
    assert (len(GOOD), len(BROKEN)) == (20, 20)


@pytest.mark.parametrize("row", GOOD, ids=lambda row: row.name)
def test_a_good_release_passes(row: Row, model: bytes, engine_python: Path, tmp_path: Path) -> None:
    assert why_refused_at_the_gate(row, model, engine_python, tmp_path) is None


@pytest.mark.parametrize("row", BROKEN, ids=lambda row: row.name)
def test_a_broken_release_is_refused_in_one_line(
    row: Row, model: bytes, engine_python: Path, tmp_path: Path
) -> None:
    if row.header:
        with pytest.raises((ModelError, SpecError)) as refused:
            why_refused_at_the_gate(row, model, engine_python, tmp_path)
        told, expected = refused.value.what, row.header
    else:
        told, expected = why_refused_at_the_gate(row, model, engine_python, tmp_path) or "", row.gate
    assert expected in told
    assert "\n" not in told
