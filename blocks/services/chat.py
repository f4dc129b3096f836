"""How a staged model is asked: its chat template, judged, and kept if it is the user's own file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from blocks.processes.chat_check import check_rendering
from blocks.services.kept_code import keep_template
from tasks.core.chat_tokens import Chat, chat_in, missing_template
from tasks.core.gguf_chat import gguf_chat
from tasks.core.gguf_model import GgufModel
from tasks.core.manifest import MANIFEST_FILE, read_manifest
from tasks.core.progress import say
from tasks.core.serving import ChatTemplate
from tasks.core.settings import Settings
from tasks.core.verdicts import StageName


def chat_of(
    folder: Path, gguf: GgufModel | None, given: Path | None, config: Mapping[str, Any]
) -> ChatTemplate | None:
    """The template that the engine serves the model in `folder` with. None without one.

    `gguf` is the model if it comes as such, else `config` is its configuration; `given` is the user's file.

    Says what users should know of it. Raises `ModelError` or `SpecError` for one that cannot be served.
    """
    chat = gguf_chat(gguf.header, str(folder), given, check_rendering) if gguf else _in_folder(folder, given)
    if chat is None:
        _say(missing_template(_names(folder, gguf, config)))
        return None
    for finding in chat.findings:
        _say(finding)
    file = keep_template(Settings.load().home, chat.template.text) if given else None
    return ChatTemplate(digest=chat.template.digest, file=file, ends_with=chat.ends_with)


def _in_folder(folder: Path, given: Path | None) -> Chat | None:
    return chat_in(folder, given, check_rendering)


def _names(folder: Path, gguf: GgufModel | None, config: Mapping[str, Any]) -> Iterable[str]:
    """What the model is called where it came from, and in its own files."""
    yield read_manifest(folder).source if (folder / MANIFEST_FILE).exists() else str(folder)
    if gguf is None:
        yield str(config.get("_name_or_path") or "")
        return
    yield from (gguf.header.text(f"general.{key}") or "" for key in ("name", "finetune"))


def _say(finding: str | None) -> None:
    if finding:
        say(StageName.QUANTIZATION, f"warning: {finding}")
