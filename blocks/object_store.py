"""Small text objects in a folder or below an S3 prefix: what the model registry's layout is read from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tasks.core.errors import NotFoundError
from tasks.core.given_files import absolute_path


class ObjectStore(Protocol):
    """Read-only view of a tree of objects. Paths have `/` between names."""

    def url(self, path: str = "") -> str:
        """Address of the tree, or of something in it."""

    def names(self, below: str = "") -> Sequence[str]:
        """Names one level below a folder, sorted; none if there is no such folder."""

    def read(self, path: str) -> bytes:
        """An object whole. Raises `NotFoundError`."""


class FolderObjects:
    """Files below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def url(self, path: str = "") -> str:
        """Address of the tree, or of something in it."""
        return f"file:{self.root / path if path else self.root}"

    def names(self, below: str = "") -> Sequence[str]:
        """Names one level below a folder, sorted; none if there is no such folder."""
        folder = self.root / below
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def read(self, path: str) -> bytes:
        """A file whole. Raises `NotFoundError`."""
        try:
            return (self.root / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError(f"there is no {self.root / path}") from None


def open_object_store(location: str, *, endpoint: str | None) -> ObjectStore:
    """The tree that a folder's path or `s3://BUCKET/PREFIX` names."""
    if location.startswith("s3://"):
        from blocks.s3 import S3Folder

        return S3Folder.open(location, endpoint=endpoint)
    return FolderObjects(absolute_path(Path(location)))
