"""Names made from content. A digest is `sha256:` and 64 hexadecimal digits."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from blake3 import blake3
from pydantic import BaseModel

_BLOCK_BYTES = 1 << 20


def digest_of(value: Any) -> str:
    """Digest of a JSON-like value or pydantic model, the same for equal values on every machine."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def digest_of_file(path: Path) -> str:
    """Digest of a file's bytes."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            state.update(block)
    return "sha256:" + state.hexdigest()


def is_digest_of_file(digest: str, path: Path) -> bool:
    """Whether `digest` (`sha256:…`, or `blake3:…` as in manifests) is that of the file's bytes."""
    if digest.startswith("blake3:"):
        return digest == "blake3:" + blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()
    return digest == digest_of_file(path)


def short(digest: str) -> str:
    """First twelve hexadecimal digits: for folder names and tables."""
    return digest.removeprefix("sha256:")[:12]
