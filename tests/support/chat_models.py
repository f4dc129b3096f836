"""The tiny model with a chat template and other changes to its files, as real models have them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

TINY = Path(__file__).parents[2] / "examples" / "tiny" / "model"

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""As Qwen, Hermes and many others have it."""

MARKERS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
)
"""Tokens of chats that the model gets, as real ones have them."""

Change = Callable[[Any], Any]
"""Makes other JSON of a file's; what the file has not is an empty object."""


def chat_model(
    folder: Path, template: Any = CHATML, files: Mapping[str, str] = {}, **changes: Change
) -> Path:
    """The tiny model in `folder`. `changes` are of `tokenizer`, `tokenizer_config`, `config`, `generation_config`."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in TINY.iterdir():
        shutil.copyfile(path, folder / path.name)
    _change(folder / "tokenizer.json", _with_markers)
    if template is not None:
        _change(folder / "tokenizer_config.json", lambda value: {**value, "chat_template": template})
    for name, change in changes.items():
        _change(folder / f"{name}.json", change)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def without(*keys: str) -> Change:
    """Removes keys."""
    return lambda value: {key: found for key, found in value.items() if key not in keys}


def with_values(**values: Any) -> Change:
    """Sets keys."""
    return lambda value: {**value, **values}


def _with_markers(tokenizer: Any) -> Any:
    """The tokenizer with the markers in place of its last words: the model has no room for more."""
    vocab, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    first = max(vocab.values()) + 1 - len(MARKERS)
    gone = {word for word, number in vocab.items() if number >= first}
    for word in gone:
        del vocab[word]
    tokenizer["model"]["merges"] = [pair for pair in merges if "".join(pair) not in gone]
    added = [
        {**tokenizer["added_tokens"][0], "id": first + at, "content": one} for at, one in enumerate(MARKERS)
    ]
    tokenizer["added_tokens"] += added
    return tokenizer


def _change(path: Path, change: Change) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()) if path.exists() else {})))
