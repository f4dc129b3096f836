"""Where a model is read from, and the state in which it was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tasks.core.direct_io import Buffer, Took
from tasks.core.errors import ModelError
from tasks.staging.models import SourceFile
from tasks.staging.plan import SUMS_FILE, read_sums, source_digest

MAX_DOCUMENT_BYTES = 256 << 20
"""The index of a model with a million tensors takes about half of it."""


def changed(what: str | Path) -> ModelError:
    """What was read, or its address, is not what was listed."""
    return ModelError(f"{what} changed while it was read", fix="try again once it is stable")


class ModelSource(Protocol):
    """Where a model's files are read from. Threads read concurrently."""

    @property
    def name(self) -> str:
        """Its address, for people: `file:…` or `s3://…`."""

    @property
    def parallel(self) -> int:
        """How many concurrent reads are fastest."""

    def list_files(self) -> Sequence[SourceFile]:
        """All files, by path. Raises `ModelError`, or `NotFoundError` if the place does not exist."""

    def read(self, file: SourceFile, offset: int, length: int) -> bytes:
        """Exactly these bytes, a small number, of exactly that file. Raises `ModelError` if it has changed."""

    def read_into(
        self, file: SourceFile, offset: int, length: int, buffer: Buffer, at: int, took: Took
    ) -> None:
        """The same, into `buffer.view[at:]`; what follows there may be overwritten."""


@dataclass(frozen=True)
class Pinned:
    """A source and the current state of its files."""

    source: ModelSource
    files: tuple[SourceFile, ...]

    @property
    def digest(self) -> str:
        """Names source and state."""
        return source_digest(self.source.name, self.files)

    def file(self, path: str) -> SourceFile:
        """The file of that path."""
        return next(file for file in self.files if file.path == path)

    def read_whole(self, path: str) -> bytes:
        """A small file. Raises `ModelError` if it is larger than any document of a model."""
        file = self.file(path)
        if file.size_bytes > MAX_DOCUMENT_BYTES:
            raise ModelError(
                f"{self.source.name}/{path} has {file.size_bytes} bytes; at most {MAX_DOCUMENT_BYTES} "
                "are read",
                fix="copy or download the model again",
            )
        return self.source.read(file, 0, file.size_bytes) if file.size_bytes else b""


def pin(source: ModelSource) -> Pinned:
    """List the source's files once. Raises what `ModelSource.list_files` raises."""
    return Pinned(source, tuple(source.list_files()))


def sums_of(pinned: Pinned) -> dict[str, str]:
    """SHA-256 by path, of the files for which the source states it: itself, or in `SHA256SUMS`."""
    sums = {file.path: file.sha256 for file in pinned.files if file.sha256}
    listed = next((file for file in pinned.files if file.path == SUMS_FILE), None)
    if listed is None:
        return sums
    for path, digest in read_sums(pinned.read_whole(SUMS_FILE)).items():
        if sums.setdefault(path, digest) != digest:
            raise ModelError(
                f"{pinned.source.name}: {SUMS_FILE} and the source itself disagree about the SHA-256 of {path}",
                fix="download the model again",
            )
    return sums
