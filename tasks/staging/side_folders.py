"""Folders inside a model's folder whose files engines read: those of Sentence Transformers, and named chat templates.

Pure.
"""

from __future__ import annotations

import re

_FOLDER = re.compile(r"additional_chat_templates|[0-9]{1,2}_[A-Z][A-Za-z]*")
_FILE = (".json", ".jinja", ".txt", ".safetensors")
ANNOUNCED_BY = ("modules.json", "chat_template.jinja", "tokenizer_config.json")
"""Files at the top of a model, one of which each such folder comes with."""


def is_side_folder(name: str) -> bool:
    """Whether a folder of this name belongs to the model: `1_Pooling`, `2_Dense`, `additional_chat_templates`."""
    return _FOLDER.fullmatch(name) is not None


def is_side_path(path: str) -> bool:
    """Whether a path is that of a file directly in such a folder, of a kind that is staged."""
    folder, slash, name = path.partition("/")
    return bool(slash) and "/" not in name and is_side_folder(folder) and name.endswith(_FILE)
