"""Folders as sources of models: links that lead out, files that change, places that are not there."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blocks.storage.model_source import FolderSource
from blocks.storage.sources import open_source
from tasks.core.direct_io import ring
from tasks.core.errors import ModelError, NotFoundError, UnreadableError, WrongUseError


def test_files_are_listed_and_read_exactly(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"0123456789")
    (tmp_path / "a").touch()
    (tmp_path / "folder").mkdir()
    source = open_source(f"file:{tmp_path}", endpoint=None)
    first, second = source.list_files()
    assert [(file.path, file.size_bytes) for file in (first, second)] == [("a", 0), ("b", 10)]
    assert source.read(second, 3, 4) == b"3456"
    with pytest.raises(ModelError, match="changed while it was read"):
        source.read(second, 8, 4)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=f"the model folder {tmp_path}/none does not exist"):
        FolderSource(tmp_path / "none").list_files()
    with pytest.raises(WrongUseError, match="is not a valid source"):
        open_source("https://x", endpoint=None)


@pytest.mark.parametrize("target", ["../outside", "/etc/hostname"])
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "outside").touch()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").symlink_to(target)
    with pytest.raises(ModelError, match="is a link that leads out of the model's folder"):
        FolderSource(folder).list_files()


def test_a_link_set_after_the_listing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"x")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "w").write_bytes(b"x")
    source = FolderSource(folder)
    (file,) = source.list_files()
    (folder / "w").unlink()
    (folder / "w").symlink_to("../outside")
    with pytest.raises(ModelError, match="leads out of"):
        source.read(file, 0, 1)


def test_links_inside_and_those_of_a_hugging_face_cache_are_followed(tmp_path: Path) -> None:
    (tmp_path / "repo" / "blobs").mkdir(parents=True)
    (tmp_path / "repo" / "blobs" / "abc").write_bytes(b"weights")
    folder = tmp_path / "repo" / "snapshots" / "main"
    folder.mkdir(parents=True)
    (folder / "w").symlink_to("../../blobs/abc")
    (folder / "same").symlink_to("w")
    source = FolderSource(folder)
    files = source.list_files()
    assert [source.read(file, 0, 7) for file in files] == [b"weights", b"weights"]


def test_a_link_to_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "w").symlink_to("gone")
    with pytest.raises(ModelError, match="is a link to a path that does not exist"):
        FolderSource(tmp_path).list_files()


def test_a_link_to_itself_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(ModelError, match=f"{tmp_path}/a is a link to itself") as error:
        FolderSource(tmp_path).list_files()
    assert error.value.fix


def test_a_name_that_is_not_utf8_is_told_in_letters_that_can_be_recorded(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"folder-\xff")).mkdir()
    assert FolderSource(tmp_path).list_files() == []
    (tmp_path / os.fsdecode(b"notes-\xff.txt")).touch()
    with pytest.raises(ModelError, match=r"whose name is not UTF-8: 'notes-\\udcff\.txt'") as error:
        FolderSource(tmp_path).list_files()
    assert str(error.value).encode()


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_what_the_disk_does_not_give_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    (tmp_path / "w").write_bytes(b"x")
    source = FolderSource(tmp_path)
    (file,) = source.list_files()
    (buffer,) = ring(1, 4096)

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    calls: dict[str, Callable[[], object]] = {
        "pread": lambda: source.read(file, 0, 1),
        "preadv": lambda: source.read_into(file, 0, 1, buffer, 0, lambda _: None),
        "open": lambda: source.read(file, 0, 1),
    }
    for name, call in calls.items():
        with monkeypatch.context() as harmed:
            harmed.setattr(f"os.{name}", fail)
            with pytest.raises(UnreadableError, match=rf"{tmp_path}/w cannot be read: .* \(check its disk"):
                call()
    with monkeypatch.context() as harmed:
        harmed.setattr("pathlib.Path.iterdir", fail)
        with pytest.raises(UnreadableError, match=f"{tmp_path} cannot be read"):
            source.list_files()


def test_a_change_that_keeps_size_and_modification_time_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(b"old")
    before = path.stat()
    source = FolderSource(tmp_path)
    (file,) = source.list_files()
    (tmp_path / "new").write_bytes(b"new")
    os.utime(tmp_path / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
    (tmp_path / "new").rename(path)
    with pytest.raises(ModelError, match="changed while it was read"):
        source.read(file, 0, 3)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder whose parents everybody may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="slipway-source-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything, so tests run by root put that aside."""
    if os.getuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_files_and_folders_that_may_not_be_read_are_named(open_folder: Path) -> None:
    (open_folder / "w").write_bytes(b"x")
    source = FolderSource(open_folder)
    (file,) = source.list_files()
    (open_folder / "w").chmod(0)
    with as_nobody(), pytest.raises(ModelError, match="w is not readable"):
        source.read(file, 0, 1)
    open_folder.chmod(0o311)
    with as_nobody(), pytest.raises(ModelError, match="is not readable"):
        source.list_files()
    open_folder.chmod(0o444)
    with as_nobody(), pytest.raises(ModelError, match=f"{open_folder} is not readable"):
        source.list_files()
    open_folder.chmod(0o755)
