"""What a staged model consists of.

Written last, so a folder with a manifest is whole or damaged, never unfinished.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tasks.core.digests import digest_of

MANIFEST_FILE = "manifest.json"


class StagedFile(BaseModel):
    """One file of a staged model. `path` is relative to the model's folder; `digest` is `blake3:…`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    size_bytes: int = Field(ge=0)
    digest: str
    kind: Literal["weights", "index", "side"]


class Manifest(BaseModel):
    """A staged model: where it came from and each file with its digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_: Literal["slipway.manifest/1"] = Field(default="slipway.manifest/1", alias="schema")
    source: str
    source_digest: str
    files: tuple[StagedFile, ...]

    @property
    def digest(self) -> str:
        """Names the model by its content, wherever it came from."""
        return digest_of([[file.path, file.size_bytes, file.digest] for file in self.files])

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(file.size_bytes for file in self.files)

    @property
    def shards(self) -> tuple[StagedFile, ...]:
        """The weight shards."""
        return tuple(file for file in self.files if file.kind == "weights")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a staged folder. Raises `FileNotFoundError` or pydantic's `ValidationError`."""
        return cls.model_validate_json((folder / MANIFEST_FILE).read_bytes())
