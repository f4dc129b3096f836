"""Files that a user names: whatever is there is read within bounds or refused with one line, without a wait."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.core.errors import NotFoundError, SpecError, WrongUseError
from tasks.core.given_files import decode_text, expand_user, read_given, write_given


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10**12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no thing "),
        (_fifo, "is not a regular file"),
        (Path.mkdir, "is a folder"),
        (_large, "is too large: at most 0.001 MB are read"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
        (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
        (lambda path: path.symlink_to("/dev/null/x"), "Not a directory"),
    ],
)
def test_what_is_no_file_to_read_is_one_line(
    make: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "it"
    make(path)
    with pytest.raises(WrongUseError, match=message) as refused:
        read_given(path, "thing", limit_bytes=1000)
    assert str(path) in refused.value.what


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "x/" * 3000])
def test_a_name_that_cannot_be_is_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as refused:
        read_given(tmp_path / name, "thing", limit_bytes=9, missing=SpecError, wrong=SpecError)
    assert len(refused.value.what) < 300


def test_a_file_is_read_to_its_last_byte(tmp_path: Path) -> None:
    path = tmp_path / "it"
    path.write_bytes(b"x" * 9)
    assert read_given(path, "thing", limit_bytes=9) == b"x" * 9
    with pytest.raises(NotFoundError):
        read_given(tmp_path / "other", "thing", limit_bytes=9)


def test_text_is_utf_8_with_or_without_a_mark() -> None:
    assert decode_text("\ufeffé".encode(), "it") == "é"
    with pytest.raises(WrongUseError, match="cannot read it: byte 1 is not UTF-8"):
        decode_text(b"a\xff", "it")


def test_the_home_of_a_user_is_found_or_refused() -> None:
    assert expand_user(Path("~root/x")).is_absolute()
    with pytest.raises(WrongUseError, match="the user 'nosuchuser' does not exist or has no home"):
        expand_user(Path("~nosuchuser/x"))


def test_what_is_named_for_output_is_written_and_never_replaced(tmp_path: Path) -> None:
    """Root's `-o /dev/full` must leave a device there; a pipe without a reader must not be waited for."""
    file, pipe, device = tmp_path / "file", tmp_path / "pipe", tmp_path / "device"
    write_given(file, "text")
    assert file.read_text() == "text"
    os.mkfifo(pipe)
    with pytest.raises(WrongUseError, match=f"cannot write {pipe}: No such device"):
        write_given(pipe, "text")
    assert pipe.is_fifo()
    device.symlink_to("/dev/full")
    with pytest.raises(WrongUseError, match=f"cannot write {device}: No space left"):
        write_given(device, "text")
    assert device.is_char_device()
    with pytest.raises(WrongUseError, match=f"cannot write {tmp_path}: Is a directory"):
        write_given(tmp_path, "text")
