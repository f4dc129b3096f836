"""Small text objects in a folder or below an S3 prefix, from which the model registry is read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from blocks.processes.deadline import within
from tasks.core.errors import AccessError, NotFoundError, UnreadableError
from tasks.core.files import read_regular
from tasks.core.given_files import absolute_path
from tasks.core.sources import FILE, S3

MOST_BYTES = 1 << 20
"""Aliases and descriptions of models are far smaller."""

_DEADLINE_S = 30.0


class ObjectStore(Protocol):
    """Read-only view of a tree of objects. Paths have `/` between names."""

    def url(self, path: str = "") -> str:
        """Address of the tree, or of something in it."""

    def names(self, below: str = "") -> Sequence[str]:
        """Names one level below a folder, sorted; empty if the folder does not exist."""

    def read(self, path: str) -> bytes:
        """The content of a small object. Raises `NotFoundError`, or `DeadlineError` if there is no answer."""


class FolderObjects:
    """Files below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def url(self, path: str = "") -> str:
        """Address of the tree, or of something in it."""
        return f"{FILE}{self.root / path if path else self.root}"

    def names(self, below: str = "") -> Sequence[str]:
        """Names one level below a folder, sorted; empty if the folder does not exist."""
        folder = self.root / below

        def look() -> list[str]:
            return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

        with _named(folder):
            return within(_DEADLINE_S, str(folder), look)

    def read(self, path: str) -> bytes:
        """The content of a small file. Raises `NotFoundError`, or `ModelError` if it is not a file."""
        file = self.root / path
        with _named(file):
            return within(_DEADLINE_S, str(file), lambda: read_regular(file, MOST_BYTES))


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{path} does not exist", fix="check SLIPWAY_REGISTRY") from None
    except PermissionError:
        raise AccessError(f"{path} is not readable", fix=f"allow it: chmod +r {path}") from None
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> UnreadableError:
    """The disk does not give what is there."""
    return UnreadableError(
        f"{path} cannot be read: {error.strerror or error}", fix="check its disk or mount, then try again"
    )


def open_object_store(location: str, *, endpoint: str | None) -> ObjectStore:
    """The tree that a folder's path or `s3://BUCKET/PREFIX` names."""
    if location.startswith(S3):
        from blocks.storage.s3 import S3Folder

        return S3Folder.open(location, endpoint=endpoint)
    return FolderObjects(absolute_path(Path(location)))
