"""Where a model's files are read from: a folder, or a prefix on S3."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from blocks.processes.deadline import within
from blocks.storage.object_store import unreadable
from tasks.core.direct_io import Buffer, DirectFile, Took
from tasks.core.errors import ModelError, NotFoundError
from tasks.core.files import read_regular
from tasks.core.given_files import absolute_path
from tasks.core.paths import checked, is_utf8
from tasks.core.sources import FILE, GGUF, ResolvedModel
from tasks.staging.gguf_choice import GgufSource, files_named, keeps
from tasks.staging.models import SourceFile
from tasks.staging.side_folders import ANNOUNCED_BY, is_side_folder
from tasks.staging.source import ModelSource, changed

if TYPE_CHECKING:
    from blocks.storage.s3 import S3Folder


_DEADLINE_S = 120.0
"""Limit for a listing, or for one chunk, s: anything slower counts as hanging."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40,64}")


def resolve_folder(source: str) -> ResolvedModel:
    """The folder that `file:PATH` names; of a Hugging Face cache the snapshot of its `main`, or its only one."""
    folder = FolderSource.of(source).folder
    commit = within(_DEADLINE_S, str(folder), lambda: _cached_commit(folder))
    place = folder / "snapshots" / commit if commit else folder
    return ResolvedModel(f"{FILE}{place}", commit)


def _cached_commit(folder: Path) -> str | None:
    """The snapshot of a Hugging Face cache that is meant: `main`'s, else the only one. None for any other folder."""
    main = folder / "refs" / "main"
    try:
        if not (folder / "snapshots").is_dir():
            return None
        names = [path.name for path in (folder / "snapshots").iterdir()]
        commit = read_regular(main, 1 << 10).decode().strip() if main.exists() else None
    except (OSError, ModelError, UnicodeDecodeError):
        return None  # listing its files reports what is wrong with the folder
    if commit is None:  # downloaded by another revision
        return _only_snapshot(folder, names)
    return commit if _COMMIT.fullmatch(commit) else None


def _only_snapshot(folder: Path, names: Sequence[str]) -> str | None:
    found = sorted(filter(_COMMIT.fullmatch, names))
    if len(found) > 1:
        raise ModelError(
            f"{folder} is a Hugging Face cache with {len(found)} snapshots, and none is its main",
            fix=f"name one: file:{folder}/snapshots/{found[0]}",
        )
    return found[0] if found else None


def check_level(folder: Path, names: Sequence[str]) -> None:
    """Raise `ModelError` if the folder has no weights, but one in it has GGUF files: that is how large ones come."""
    if any(name.endswith(GGUF) or ".safetensors" in name for name in names):
        return
    below = next((path.parent for path in sorted(folder.glob(f"*/*{GGUF}"))), None)
    if below is not None:
        raise ModelError(
            f"{folder} contains no weights, but its folder {below.name} has GGUF files",
            fix=f"set model: file:{below}",
        )


def open_folder(source: str) -> ModelSource:
    """The folder that `file:PATH` names, or the GGUF file with its other parts. Does not look at the folder's others:
    they may be anything."""
    place = absolute_path(Path(source.removeprefix(FILE)))
    if place.suffix != GGUF or within(_DEADLINE_S, str(place), place.is_dir):
        return FolderSource.of(source)
    files = files_named(place.name)
    return GgufSource(FolderSource(place.parent, keeps(files)), files)


def open_s3(source: str, endpoint: str | None) -> ModelSource:
    """The objects below `s3://BUCKET/PREFIX`."""
    from blocks.storage.s3 import S3Folder

    return S3Source(S3Folder.open(source, endpoint=endpoint))


class FolderSource:
    """The files of one folder. Links may not lead out of it, except those of a Hugging Face cache."""

    def __init__(self, folder: Path, only: Callable[[str], bool] = lambda _: True) -> None:
        self.folder = absolute_path(folder)
        self._only = only

    @classmethod
    def of(cls, source: str) -> FolderSource:
        """The folder that `file:PATH` names."""
        return cls(Path(source.removeprefix(FILE)))

    @property
    def parallel(self) -> int:
        """One more than there are CPUs overlaps reading with hashing; more only cost memory."""
        return max(3, min(8, (os.cpu_count() or 1) + 1))

    @property
    def name(self) -> str:
        """Its address."""
        return f"{FILE}{self.folder}"

    def list_files(self) -> Sequence[SourceFile]:
        """Files directly in the folder, and in folders there that belong to a model, by path.

        Raises `DeadlineError` if the mount hangs.
        """
        return within(_DEADLINE_S, self.name, self._list)

    def _list(self) -> Sequence[SourceFile]:
        with _named(self.folder, allow="+rx"):
            if not self.folder.is_dir():
                raise NotFoundError(
                    f"the model folder {self.folder} does not exist", fix="check the spec's `model`"
                )
            names = sorted(path for path in self.folder.iterdir() if self._only(path.name))
            folders = [path for path in names if is_side_folder(path.name) and path.is_dir()]
            names += [path for folder in folders for path in sorted(folder.iterdir())]
            found = [self._look(path) for path in names]
        return [file for file in found if file is not None]

    def _look(self, path: Path) -> SourceFile | None:
        """The file of that path; None if it is not a file. Raises the folder's `PermissionError`."""
        if not is_utf8(path.name) and not path.is_dir():
            raise ModelError(
                f"{self.folder} contains a file whose name is not UTF-8: {path.name!r}",
                fix="rename it, or move it away",
            )
        try:
            real = self._inside(path)
            status = real.stat()
        except FileNotFoundError:
            raise ModelError(
                f"{path} is a link to a path that does not exist", fix="copy the model again"
            ) from None
        except PermissionError:
            raise
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise ModelError(f"{path} is a link to itself", fix="replace it with the file") from None
            raise unreadable(path, error) from error
        if not stat.S_ISREG(status.st_mode):
            return None
        # In a Hugging Face cache, a large file's name is its SHA-256.
        known = real.parent.name == "blobs" and _SHA256.fullmatch(real.name)
        return SourceFile(
            path=str(path.relative_to(self.folder)),
            size_bytes=status.st_size,
            identity=_identity(status),
            sha256=real.name if known else None,
        )

    def read(self, file: SourceFile, offset: int, length: int) -> bytes:
        """Exactly these bytes of exactly that file."""

        def look() -> bytes:
            with self._open(file, direct=False) as opened:
                content = _read_fully(opened.handle, offset, length)
                self._check(file, opened, len(content) == length)
            return content

        return within(_DEADLINE_S, f"{self.folder / file.path}", look)

    def read_into(
        self, file: SourceFile, offset: int, length: int, buffer: Buffer, at: int, took: Took
    ) -> None:
        """The same, bypassing the page cache."""

        def look() -> None:
            with self._open(file, direct=True) as opened:
                self._check(file, opened, opened.read_into(offset, length, buffer, at, took) == length)

        within(_DEADLINE_S, f"{self.folder / file.path}", look)

    @contextlib.contextmanager
    def _open(self, file: SourceFile, *, direct: bool) -> Iterator[DirectFile]:
        path = self.folder / file.path
        with _named(path, allow="+r"):
            try:
                opened = DirectFile(
                    self._inside(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, direct=direct
                )
            except FileNotFoundError:
                raise ModelError(
                    f"{path} disappeared while it was read", fix="try again once it is stable"
                ) from None
            with opened:
                yield opened

    def _check(self, file: SourceFile, opened: DirectFile, complete: bool) -> None:
        if not complete or _identity(os.fstat(opened.handle)) != file.identity:
            raise changed(self.folder / file.path)

    def _inside(self, path: Path) -> Path:
        try:
            real = path.resolve()
        except RuntimeError:  # raised before Python 3.13 for a link to itself
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
        homes = [self.folder.resolve()]
        if self.folder.parent.name == "snapshots":  # a Hugging Face cache links each file to its content
            homes.append(self.folder.parent.parent.resolve() / "blobs")
        if not any(real.is_relative_to(home) for home in homes):
            raise ModelError(
                f"{path} is a link that leads out of the model's folder, to {real}",
                fix="replace it with the file",
            )
        return real


class S3Source:
    """The objects of one prefix."""

    parallel = 8

    def __init__(self, folder: S3Folder) -> None:
        self._folder = folder
        self._ranges = folder.ranges()

    @property
    def name(self) -> str:
        """Its address."""
        return self._folder.url()

    def list_files(self) -> Sequence[SourceFile]:
        """Objects one level below the prefix, and in folders there that belong to a model.

        A server that ignores the delimiter also lists deeper ones, which are skipped. Raises `UnsafeNameError` for a
        key at any level that leads out of its folder.
        """
        objects = self._folder.objects(deep=False)
        found = [item for item in objects if "/" not in checked(item.path, self.name)]
        if any(item.path in ANNOUNCED_BY for item in found):
            below = [name for name in self._folder.names() if is_side_folder(name)]
            found += [item for name in below for item in self._folder.objects(f"{name}/", deep=False)]
        if not found:
            raise NotFoundError(f"there are no objects below {self.name}", fix="check bucket and prefix")
        return [SourceFile(path=item.path, size_bytes=item.size_bytes, identity=item.etag) for item in found]

    def read(self, file: SourceFile, offset: int, length: int) -> bytes:
        """Exactly these bytes of exactly that object."""
        content = self._folder.read_range(file.path, file.identity, offset, length)
        if len(content) != length:
            raise changed(f"{self.name}/{file.path}")
        return content

    def read_into(
        self, file: SourceFile, offset: int, length: int, buffer: Buffer, at: int, took: Took
    ) -> None:
        """The same, straight into the buffer."""
        self._ranges.read_into(file.path, file.identity, offset, length, buffer, at, took)


@contextlib.contextmanager
def _named(path: Path, *, allow: str) -> Iterator[None]:
    """Turn errors of the file system about `path` into one error that names it."""
    try:
        yield
    except PermissionError:
        raise ModelError(f"{path} is not readable", fix=f"allow it: chmod {allow} {path}") from None
    except OSError as error:
        raise unreadable(path, error) from error


def _identity(status: os.stat_result) -> str:
    """Changes whenever the file is written or replaced: the change time cannot be set back."""
    return f"{status.st_mtime_ns}:{status.st_ctime_ns}:{status.st_ino}:{status.st_size}"


def _read_fully(handle: int, offset: int, length: int) -> bytes:
    """`os.pread` may return less than requested; less than `length` in total means the end of the file."""
    pieces: list[bytes] = []
    while length and (piece := os.pread(handle, length, offset)):
        pieces.append(piece)
        offset += len(piece)
        length -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
