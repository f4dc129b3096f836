"""Judge chat templates in a child process: they come with models, and run before anything else does."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from blocks.processes.process import run
from tasks.core.chat_check import CPU_S
from tasks.core.chat_template import Template
from tasks.core.errors import CommandTimeoutError

_WALL_S = 60.0
"""On a busy host, `CPU_S` of computing take longer."""


def check_rendering(template: Template, tokens: Mapping[str, str]) -> str:
    """As `tasks.core.chat_template.check_template`, with limits of time and memory."""
    asked = {"text": template.text, "where": template.where, "tokens": dict(tokens)}
    too_long = template.error(f"the chat template renders for more than {CPU_S} s")
    with tempfile.TemporaryDirectory(prefix="slipway-chat-") as folder:
        file = Path(folder, "template.json")
        file.write_text(json.dumps(asked))
        try:
            ended = run(
                [sys.executable, "-I", "-m", "tasks.core.chat_check", file],
                timeout_s=_WALL_S,
                cwd=file.parent,
            )
        except CommandTimeoutError:
            raise too_long from None
    if ended.code != 0:
        if "MemoryError" in ended.stderr:
            raise template.error("the chat template needs more than 1 GiB of memory to render")
        raise too_long
    answer = json.loads(ended.stdout)
    if wrong := answer.get("wrong"):
        raise template.wrong(wrong, fix=template.error("").fix)
    return str(answer["closing"])
