"""What a staged model consists of.

Written last, so a folder with a manifest is whole or damaged, never unfinished.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.core.cancellation import Cancellation, current
from tasks.core.digests import digest_of
from tasks.core.errors import ModelError

MANIFEST_FILE = "manifest.json"
_CHUNK_BYTES = 16 << 20


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


def damaged_files(folder: Path, files: Sequence[StagedFile]) -> tuple[str, ...]:
    """Paths of those files that are missing or hold other bytes than they should."""
    signal = current()  # the pool's threads have contexts of their own
    with ThreadPoolExecutor(max_workers=2) as pool:
        sound = pool.map(lambda file: _is_sound(folder, file, signal), files)
        return tuple(file.path for file, good in zip(files, sound, strict=True) if not good)


def verify(folder: Path) -> tuple[Manifest, tuple[str, ...]]:
    """Manifest of a staged folder and its damaged files. Raises `ModelError` for a folder without one."""
    try:
        manifest = Manifest.read(folder)
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(f"{folder} holds no staged model", fix="stage one: slipway stage copy") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise ModelError(
            f"{folder / MANIFEST_FILE} is damaged: {first['msg']}", fix="remove it and stage the model again"
        ) from None
    return manifest, damaged_files(folder, manifest.files)


def is_intact(folder: Path, manifest_digest: str) -> bool:
    """Whether `folder` still holds, byte for byte, the model of that digest."""
    try:
        manifest, damaged = verify(folder)
    except ModelError:
        return False
    return not damaged and manifest.digest == manifest_digest


def _is_sound(folder: Path, file: StagedFile, signal: Cancellation) -> bool:
    path = folder / file.path
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
        if not inside or path.stat().st_size != file.size_bytes:
            return False
        state = blake3(max_threads=blake3.AUTO)
        with path.open("rb", buffering=0) as handle:
            while chunk := handle.read(_CHUNK_BYTES):
                signal.check()
                state.update(chunk)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    return file.digest == f"blake3:{state.hexdigest()}"
