"""What a staged model consists of.

Written last, so a folder with a manifest is complete or damaged, never unfinished. It has the digest of each
chunk, so that damage is found in parallel and repaired chunk by chunk, and a seal that shows damage to the
manifest itself.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Literal

from blake3 import blake3
from pydantic import Field, ValidationError

from tasks.core.cancellation import Cancellation, current
from tasks.core.digests import digest_of
from tasks.core.direct_io import CHUNK_BYTES, Buffer, DirectFile, chunk_count, digest_of_chunks, ring
from tasks.core.errors import ModelError, UnsafeNameError
from tasks.core.frozen import Frozen
from tasks.core.paths import inside, why_unsafe

MANIFEST_FILE = "manifest.json"
SCHEMA = "slipway.manifest/2"
FileKind = Literal["weights", "index", "side", "gguf"]
_PARALLEL = 3


class StagedFile(Frozen):
    """One file of a staged model. `path` is relative to the model's folder; `chunks` are BLAKE3 digests."""

    path: str
    size_bytes: int = Field(ge=0)
    digest: str
    kind: FileKind
    chunks: tuple[str, ...]

    @classmethod
    def of(cls, path: str, size_bytes: int, kind: FileKind, chunks: Sequence[str]) -> StagedFile:
        """A file named by the digests of its chunks."""
        return cls(
            path=path, size_bytes=size_bytes, kind=kind, chunks=tuple(chunks), digest=digest_of_chunks(chunks)
        )


_Work = SimpleQueue[tuple[StagedFile, int]]
"""Chunks, from which several threads take one at a time."""


class Manifest(Frozen):
    """A staged model: where it came from and each file with its digests."""

    schema_: Literal["slipway.manifest/2"] = Field(default="slipway.manifest/2", alias="schema")
    source: str
    source_digest: str
    chunk_bytes: int = Field(CHUNK_BYTES, gt=0, multiple_of=4096)
    files: tuple[StagedFile, ...]

    @property
    def digest(self) -> str:
        """Digest that names the model by its content, whatever its source."""
        return digest_of([[file.path, file.size_bytes, file.digest] for file in self.files])

    @property
    def size_bytes(self) -> int:
        """Size of all files, bytes."""
        return sum(file.size_bytes for file in self.files)

    @property
    def shards(self) -> tuple[StagedFile, ...]:
        """The weight shards."""
        return tuple(file for file in self.files if file.kind == "weights")

    def render(self) -> str:
        """The document with its seal over every byte."""
        body = self.model_dump(mode="json", by_alias=True)
        return json.dumps({**body, "seal": digest_of(body)}, indent=1) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a staged folder.

        Raises `FileNotFoundError`, `NotADirectoryError`, or `ModelError` for one that is damaged or of another
        version.
        """
        path = folder / MANIFEST_FILE
        try:
            text = path.read_bytes()
        except IsADirectoryError:
            raise _damaged(path, "it is a folder") from None
        try:
            values = json.loads(text)
            schema = values["schema"]
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise _damaged(path, " ".join(str(error).split())[:120]) from None
        if schema != SCHEMA:
            raise ModelError(
                f"{path} is of the format {str(schema)[:40]!r}, which this version does not read ({SCHEMA})",
                fix="remove the folder and stage the model again",
            )
        values.pop("seal", None)
        try:
            manifest = cls.model_validate(values)
        except ValidationError as error:
            raise _damaged(path, error.errors()[0]["msg"]) from None
        for file in manifest.files:
            if why := why_unsafe(file.path):
                raise _damaged(path, f"the name of a file is refused: {why}")
        if manifest.render().encode() != text:
            raise _damaged(path, "it is not as it was written")
        return manifest


def _damaged(path: Path, why: str) -> ModelError:
    return ModelError(f"{path} is damaged: {why}", fix="remove the folder and stage the model again")


def damaged_chunks(
    folder: Path, files: Sequence[StagedFile], chunk_bytes: int = CHUNK_BYTES
) -> Mapping[str, tuple[int, ...]]:
    """Numbers of the damaged chunks by file; all chunks of a missing file."""
    whole = [file for file in files if _has_size(folder, file, chunk_bytes)]
    bad = {file.path: set(range(len(file.chunks))) for file in files if file not in whole}
    work: _Work = SimpleQueue()
    for file in whole:
        for number in range(len(file.chunks)):
            work.put((file, number))
    signal = current()
    workers = min(_PARALLEL, work.qsize())
    if workers:
        largest = min(chunk_bytes, max(file.size_bytes for file in whole))
        with ThreadPoolExecutor(workers) as pool:
            found = [
                pool.submit(copy_context().run, _look, folder, work, buffer, chunk_bytes, signal)
                for buffer in ring(workers, largest)
            ]
        for path, number in itertools.chain.from_iterable(future.result() for future in found):
            bad.setdefault(path, set()).add(number)
    return {file.path: tuple(sorted(bad[file.path])) for file in files if file.path in bad}


def damaged_files(
    folder: Path, files: Sequence[StagedFile], chunk_bytes: int = CHUNK_BYTES
) -> tuple[str, ...]:
    """Paths of the files that are missing or damaged."""
    return tuple(damaged_chunks(folder, files, chunk_bytes))


def read_manifest(folder: Path) -> Manifest:
    """As `Manifest.read`, but also raises `ModelError` for a folder without a manifest."""
    try:
        return Manifest.read(folder)
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(
            f"{folder} does not contain a staged model", fix="stage one: slipway stage copy"
        ) from None


def verify(folder: Path) -> tuple[Manifest, tuple[str, ...]]:
    """Manifest of a staged folder and its damaged files. Raises `ModelError` for a folder without one."""
    manifest = read_manifest(folder)
    return manifest, damaged_files(folder, manifest.files, manifest.chunk_bytes)


def is_intact(folder: Path, manifest_digest: str) -> bool:
    """Whether `folder` still contains, byte for byte, the model of that digest."""
    try:
        manifest, damaged = verify(folder)
    except ModelError:
        return False
    return not damaged and manifest.digest == manifest_digest


def _look(
    folder: Path, work: _Work, buffer: Buffer, chunk_bytes: int, signal: Cancellation
) -> list[tuple[str, int]]:
    bad: list[tuple[str, int]] = []
    while True:
        try:
            file, number = work.get_nowait()
        except Empty:
            return bad
        signal.check()
        offset = number * chunk_bytes
        try:
            digest = chunk_digest(
                folder / file.path, offset, min(chunk_bytes, file.size_bytes - offset), buffer
            )
        except OSError:  # removed since, or the disk cannot read it
            digest = None
        if digest != file.chunks[number]:
            bad.append((file.path, number))


def chunk_digest(path: Path, offset: int, length: int, buffer: Buffer) -> str:
    """BLAKE3 of these bytes of a file, in hexadecimal; afterwards they are in `buffer`. Raises `OSError`."""
    state = blake3()
    with DirectFile(path, 0) as file:
        file.read_into(offset, length, buffer, 0, state.update)
    return state.hexdigest()


def _has_size(folder: Path, file: StagedFile, chunk_bytes: int) -> bool:
    try:
        if len(file.chunks) != chunk_count(file.size_bytes, chunk_bytes):
            return False
        path = inside(folder, file.path, MANIFEST_FILE, follow=True)
        return path.is_file() and path.stat().st_size == file.size_bytes
    except (OSError, UnsafeNameError):
        return False
