"""The local cache that `huggingface_hub` and everything built on it share: `models--ORG--NAME/snapshots/COMMIT`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from blocks.storage.model_source import FolderSource
from tasks.core.direct_io import Buffer, Took
from tasks.core.errors import ModelError, SlipwayError
from tasks.core.files import read_regular
from tasks.core.sources import HubReference
from tasks.staging.models import SourceFile

_COMMIT = re.compile(r"[0-9a-f]{40}")


class CachedModel:
    """The snapshot of one commit. A file is there if its content is kept under the name that the hub gives it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commit = folder.name
        self._source = FolderSource(folder)

    @classmethod
    def find(cls, reference: HubReference) -> CachedModel | None:
        """The snapshot that the cache has for this revision; None without one."""
        home = _cache() / f"models--{reference.repository.replace('/', '--')}"
        commit = reference.revision if reference.pinned else _ref(home / "refs" / reference.revision)
        if commit is None or not (home / "snapshots" / commit).is_dir():
            return None
        return cls(home / "snapshots" / commit)

    def list_files(self) -> list[SourceFile]:
        """The files that are there, as the hub would list them. Raises `ModelError`."""
        return [self._as_listed(file) for file in self._source.list_files()]

    def has(self, file: SourceFile) -> bool:
        """Whether the whole content of that file is there."""
        found = self._files.get(file.path)
        return found is not None and self._as_listed(found) == file

    def read(self, file: SourceFile, offset: int, length: int) -> bytes:
        """As `ModelSource` says."""
        return self._source.read(self._files[file.path], offset, length)

    def read_into(
        self, file: SourceFile, offset: int, length: int, buffer: Buffer, at: int, took: Took
    ) -> None:
        """As `ModelSource` says."""
        self._source.read_into(self._files[file.path], offset, length, buffer, at, took)

    @cached_property
    def _files(self) -> Mapping[str, SourceFile]:
        try:
            return {file.path: file for file in self._source.list_files()}
        except SlipwayError:
            return {}  # a damaged cache: the hub has the files

    def _as_listed(self, file: SourceFile) -> SourceFile:
        real = (self.folder / file.path).resolve()
        kept = real.name if real.parent.name == "blobs" else file.identity
        return file.model_copy(update={"identity": kept})


def _ref(path: Path) -> str | None:
    try:
        commit = read_regular(path, 1 << 10).decode().strip()
    except (OSError, ModelError, UnicodeDecodeError):
        return None
    return commit if _COMMIT.fullmatch(commit) else None


def _cache() -> Path:
    """Where the library keeps it: `HF_HUB_CACHE`, else below `HF_HOME`."""
    if named := os.environ.get("HF_HUB_CACHE"):
        return Path(named).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"
