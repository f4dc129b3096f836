"""What users are told of a model's way to chat, before its release is rolled out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chat_models import CHATML, chat_model, with_values

from blocks.services.chat import chat_of
from tasks.core.model_shape import read_model_config

ENDLESS = {"generation_config": with_values(eos_token_id=0)}


@pytest.mark.parametrize(
    ("name", "template", "changes", "told"),
    [
        ("tiny", None, {}, ""),
        ("tiny-it", None, {}, "was trained to chat, by its name, but has no chat template"),
        ("tiny", CHATML, ENDLESS, "the chat template ends answers with '<|im_end|>', where"),
        ("tiny", CHATML, {"generation_config": with_values(eos_token_id=2043)}, ""),
    ],
)
def test_a_warning_is_said_once(
    name: str,
    template: Any,
    changes: Any,
    told: str,
    tmp_path: Path,
    slipway_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr("blocks.services.chat.say", lambda stage, text: said.append(text))
    folder = chat_model(tmp_path / name, template, **changes)
    chat = chat_of(folder, None, None, read_model_config(folder))
    assert (chat is None) == (template is None)
    assert [told in text for text in said] == [True] * bool(told)


def test_a_file_of_the_users_is_kept(tmp_path: Path, slipway_home: Path) -> None:
    given = tmp_path / "mine.jinja"
    given.write_text(CHATML)
    chat = chat_of(chat_model(tmp_path / "tiny"), None, given, {})
    assert chat is not None
    assert chat.file is not None
    assert chat.file.read_text() == CHATML
    assert slipway_home in chat.file.parents
    assert chat.ends_with == "<|im_end|>"
