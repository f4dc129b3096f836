"""Where a model's files are read from: a folder, or a prefix on S3."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from blocks.processes.deadline import within
from tasks.core.direct_io import Buffer, DirectFile, Took
from tasks.core.errors import ModelError, NotFoundError, UnreadableError
from tasks.core.files import read_regular
from tasks.core.given_files import absolute_path
from tasks.core.paths import checked, is_utf8
from tasks.core.sources import FILE, ResolvedModel
from tasks.staging.models import SourceFile
from tasks.staging.source import ModelSource

if TYPE_CHECKING:
    from blocks.storage.s3 import S3Folder


_DEADLINE_S = 120.0
"""For a listing, or for one chunk: whoever needs longer hangs."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


def resolve_folder(source: str) -> ResolvedModel:
    """The folder that `file:PATH` names; of a Hugging Face cache the snapshot that its `main` names."""
    folder = FolderSource.of(source).folder
    commit = within(_DEADLINE_S, str(folder), lambda: _cached_commit(folder))
    place = folder / "snapshots" / commit if commit else folder
    return ResolvedModel(f"{FILE}{place}", commit)


def _cached_commit(folder: Path) -> str | None:
    try:
        if not (folder / "snapshots").is_dir():
            return None
        commit = read_regular(folder / "refs" / "main", 1 << 10).decode().strip()
    except (OSError, ModelError, UnicodeDecodeError):
        return None  # whatever ails the folder is told when its files are listed
    return commit if re.fullmatch(r"[0-9a-f]{40,64}", commit) else None


def open_s3(source: str, endpoint: str | None) -> ModelSource:
    """The objects below `s3://BUCKET/PREFIX`."""
    from blocks.storage.s3 import S3Folder

    return S3Source(S3Folder.open(source, endpoint=endpoint))


class FolderSource:
    """The files of one folder. Links may not lead out of it, but for those of a Hugging Face cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = absolute_path(folder)

    @classmethod
    def of(cls, source: str) -> FolderSource:
        """The folder that `file:PATH` names."""
        return cls(Path(source.removeprefix(FILE)))

    @property
    def parallel(self) -> int:
        """One more than there are processors hides the disk behind the hashing; more only cost memory."""
        return max(3, min(8, (os.cpu_count() or 1) + 1))

    @property
    def name(self) -> str:
        """Its address."""
        return f"{FILE}{self.folder}"

    def list_files(self) -> Sequence[SourceFile]:
        """Files of the folder itself, by path. Raises `DeadlineError` where the mount hangs."""
        return within(_DEADLINE_S, self.name, self._list)

    def _list(self) -> Sequence[SourceFile]:
        with _named(self.folder, allow="+rx"):
            if not self.folder.is_dir():
                raise NotFoundError(
                    f"there is no model folder {self.folder}", fix="look at the spec's `model`"
                )
            found = [self._look(path) for path in sorted(self.folder.iterdir())]
        return [file for file in found if file is not None]

    def _look(self, path: Path) -> SourceFile | None:
        """The file of that path; None for anything but a file. Raises `PermissionError` of the folder."""
        if not is_utf8(path.name) and not path.is_dir():
            raise ModelError(
                f"{self.folder} holds a file whose name is not UTF-8: {path.name!r}",
                fix="rename it, or put it elsewhere",
            )
        try:
            real = self._inside(path)
            status = real.stat()
        except FileNotFoundError:
            raise ModelError(f"{path} is a link that leads nowhere", fix="copy the model again") from None
        except PermissionError:
            raise
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise ModelError(
                    f"{path} is a link that leads to itself", fix="put the file itself there"
                ) from None
            raise _unreadable(path, error) from error
        if not stat.S_ISREG(status.st_mode):
            return None
        # In a Hugging Face cache, what was stored as a large file bears its SHA-256.
        known = real.parent.name == "blobs" and _SHA256.fullmatch(real.name)
        return SourceFile(
            path=path.name,
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
        """The same, past the page cache."""

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
                    f"{path} disappeared while it was read", fix="try again when it rests"
                ) from None
            with opened:
                yield opened

    def _check(self, file: SourceFile, opened: DirectFile, complete: bool) -> None:
        if not complete or _identity(os.fstat(opened.handle)) != file.identity:
            raise ModelError(
                f"{self.folder / file.path} changed while it was read", fix="try again when it rests"
            )

    def _inside(self, path: Path) -> Path:
        try:
            real = path.resolve()
        except RuntimeError:  # what Python before 3.13 says of a link to itself
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
        homes = [self.folder.resolve()]
        if self.folder.parent.name == "snapshots":  # a Hugging Face cache links each file to its content
            homes.append(self.folder.parent.parent.resolve() / "blobs")
        if not any(real.is_relative_to(home) for home in homes):
            raise ModelError(
                f"{path} is a link that leads out of the model's folder, to {real}",
                fix="put the file itself there",
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
        """Objects one level below the prefix, by path.

        A server that ignores the delimiter lists deeper ones, too: they are left out. Raises `UnsafeNameError` for a
        key that leads out of a folder, at whatever level.
        """
        objects = self._folder.objects(deep=False)
        found = [item for item in objects if "/" not in checked(item.path, self.name)]
        if not found:
            raise NotFoundError(f"there is nothing below {self.name}", fix="look at bucket and prefix")
        return [SourceFile(path=item.path, size_bytes=item.size_bytes, identity=item.etag) for item in found]

    def read(self, file: SourceFile, offset: int, length: int) -> bytes:
        """Exactly these bytes of exactly that object."""
        content = self._folder.read_range(file.path, file.identity, offset, length)
        if len(content) != length:
            raise ModelError(
                f"{self.name}/{file.path} changed while it was read", fix="try again when it rests"
            )
        return content

    def read_into(
        self, file: SourceFile, offset: int, length: int, buffer: Buffer, at: int, took: Took
    ) -> None:
        """The same, straight into the buffer."""
        self._ranges.read_into(file.path, file.identity, offset, length, buffer, at, took)


@contextlib.contextmanager
def _named(path: Path, *, allow: str) -> Iterator[None]:
    """What the file system says against reading `path` becomes one error that names it."""
    try:
        yield
    except PermissionError:
        raise ModelError(f"{path} may not be read", fix=f"allow it: chmod {allow} {path}") from None
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> UnreadableError:
    return UnreadableError(
        f"{path} cannot be read: {error.strerror or error}",
        fix="look at the disk or the mount that it is on, then try again",
    )


def _identity(status: os.stat_result) -> str:
    """Differs whenever the file was written or replaced: the change time cannot be set back."""
    return f"{status.st_mtime_ns}:{status.st_ctime_ns}:{status.st_ino}:{status.st_size}"


def _read_fully(handle: int, offset: int, length: int) -> bytes:
    """`os.pread` may return less than asked for; less than `length` in all means the end of the file."""
    pieces: list[bytes] = []
    while length and (piece := os.pread(handle, length, offset)):
        pieces.append(piece)
        offset += len(piece)
        length -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
