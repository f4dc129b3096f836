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

TURN = "{{ message['role'] }}: {{ message['content'] }}"
LOOP = "{% for message in messages %}" + TURN + "{{ eos_token }}{% endfor %}"
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + system + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if message['role'] == 'assistant' %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
)
LLAMA_3 = (
    "{{- bos_token }}{%- set date = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' %}"
    "{%- if tools is not none %}{{- tools | tojson(indent=4) }}{%- endif %}{{- date }}"
    "{%- for message in messages %}{%- if not (message.role == 'ipython' or 'tool_calls' in message) %}"
    "{{- '<|start_header_id|>' + message['role'] + '\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{%- endif %}{%- endfor %}"
)
QWEN_3 = (
    "{%- set ns = namespace(multi_step_tool=true, last=messages|length - 1) %}"
    "{%- for message in messages[::-1] %}{%- if message.role == 'user' %}{%- set ns.multi_step_tool = false %}"
    "{%- break %}{%- endif %}{%- endfor %}{%- for message in messages %}"
    "{%- set content = message.content %}{%- if '</think>' in content %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}{%- endfor %}"
)
PARTS = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)
FIRST_IS_SYSTEM = "{% if messages[0].role != 'system' %}{{ 'You help.' }}{% endif %}" + LOOP
MACRO = "{% macro turn(message) %}" + TURN + "{% endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}"
TRAINED = "{% for message in messages %}{% generation %}" + TURN + "{% endgeneration %}{% endfor %}"
REASONS = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.reasoning_content %}{{ '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}{% endif %}"
    "{{ message.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}"
    "{% else %}{{ '<think>\n' }}{% endif %}{% endif %}"
)
"""Of a model that always reasons first."""

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
