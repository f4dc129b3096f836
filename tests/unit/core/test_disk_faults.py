"""What the operating system says of a file becomes one line that names it, and a way out."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tasks.core.disk_faults import as_disk_fault, disk_fault, fault_told, unforeseen_fault
from tasks.core.errors import DiskError, DiskFullError
from tasks.core.files import create_exclusively, file_lock, make_folder, write_atomically

KINDS = {
    errno.ENOSPC: (DiskFullError, "no space left to write"),
    errno.EDQUOT: (DiskFullError, "this user's quota leaves no space to write"),
    errno.EROFS: (DiskError, "is on a disk that is mounted read-only"),
    errno.EACCES: (DiskError, "may not use"),
    errno.EPERM: (DiskError, "may not use"),
    errno.ENAMETOOLONG: (DiskError, "the file system does not allow a name as long as"),
    errno.EIO: (DiskError, "input/output error at"),
    errno.ESTALE: (DiskError, "is gone"),
    errno.EISDIR: (DiskError, "is a folder, and is in the way"),
    errno.EEXIST: (DiskError, "is a folder, and is in the way"),
}


@pytest.mark.parametrize("number", KINDS, ids=errno.errorcode.get)
def test_each_kind_names_the_file_and_a_way_out(number: int, tmp_path: Path) -> None:
    kind, words = KINDS[number]
    path = tmp_path / "file"
    path.mkdir()
    fault = disk_fault(OSError(number, os.strerror(number), str(path)))
    assert type(fault) is kind
    assert words in fault.what
    assert "file" in fault.what
    assert fault.fix
    # An error of a write names no file: then the caller does.
    unnamed = disk_fault(OSError(number, os.strerror(number)), path)
    assert unnamed is not None
    assert unnamed.what == fault.what


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ECONNREFUSED, errno.EMFILE, errno.EPIPE])
def test_what_is_not_about_a_disk_stays_what_it_is(number: int, tmp_path: Path) -> None:
    error = OSError(number, os.strerror(number))
    assert disk_fault(error, tmp_path) is None
    assert as_disk_fault(error, tmp_path) is error


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("OSError: [Errno 28] No space left on device", DiskFullError),
        ("OSError: [Errno 122] Disk quota exceeded: '/x'", DiskFullError),
        ("SafetensorError: I/O error: (os error 28)", DiskFullError),
        ("PermissionError: [Errno 13] Permission denied: '/x'", DiskError),
        ("OSError: [Errno 30] Read-only file system: '/x'", DiskError),
        ("OSError: [Errno 5] Input/output error", DiskError),
    ],
)
def test_what_a_program_died_of_is_read_from_its_last_words(
    text: str, kind: type[DiskError], tmp_path: Path
) -> None:
    fault = fault_told(f"Traceback (most recent call last):\n{text}", tmp_path / "out")
    assert type(fault) is kind
    assert str(tmp_path) in fault.what


@pytest.mark.parametrize("text", ["", "ValueError: [Errno 2] no such file", "port 28 is taken"])
def test_other_last_words_are_no_fault_of_a_disk(text: str, tmp_path: Path) -> None:
    assert fault_told(text, tmp_path) is None


def test_a_denied_file_names_the_folder_that_denies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "home"
    closed.mkdir()
    monkeypatch.setattr(os, "access", lambda path, what, **_: Path(path) != closed)
    fault = disk_fault(PermissionError(errno.EACCES, "denied", str(closed / "records" / "one")))
    assert fault is not None
    assert f"denied by {closed}" in fault.what
    assert f"give this user access to {closed}, or set SLIPWAY_HOME" in (fault.fix or "")


@pytest.mark.parametrize("write", [write_atomically, create_exclusively])
def test_a_write_to_where_a_folder_or_file_is_in_the_way_says_what_to_move(
    write: object, tmp_path: Path
) -> None:
    assert callable(write)
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError) as error:
        write(tmp_path / "file" / "state.json", "new")
    assert error.value.fix == f"move it away: mv {tmp_path / 'file'} {tmp_path / 'file'}.damaged"
    (tmp_path / "file").rename(tmp_path / "file.damaged")
    write(tmp_path / "file" / "state.json", "new")
    assert (tmp_path / "file" / "state.json").read_text() == "new"


def test_a_lock_that_cannot_be_made_names_the_disk(tmp_path: Path) -> None:
    (tmp_path / "leases").write_text("")
    with (
        pytest.raises(DiskError, match=f"{tmp_path / 'leases'} is a file"),
        file_lock(tmp_path / "leases" / "one", wait=False, holder="one"),
    ):
        raise AssertionError("it was not held")


def test_a_folder_that_cannot_be_made_names_what_denies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(DiskError, match="may not use"):
        make_folder(tmp_path / "new")


@pytest.mark.parametrize("number", [errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.EACCES, errno.EPERM])
def test_an_error_that_names_no_file_is_not_blamed_on_the_home(number: int, tmp_path: Path) -> None:
    """Its advice would be to move the home away, with every service in it."""
    assert unforeseen_fault(OSError(number, os.strerror(number)), tmp_path) is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_fails_as_a_whole_is_the_homes(number: int, tmp_path: Path) -> None:
    fault = unforeseen_fault(OSError(number, os.strerror(number)), tmp_path)
    assert fault is not None
    assert str(tmp_path) in fault.what


def test_nothing_outside_the_home_is_to_be_moved_away(tmp_path: Path) -> None:
    home, other = tmp_path / "home", tmp_path / "certs"
    inside = home / "locks"
    for folder in (inside, other):
        folder.mkdir(parents=True)
    assert unforeseen_fault(OSError(errno.EISDIR, "", str(other)), home) is None
    assert unforeseen_fault(OSError(errno.EISDIR, "", str(home)), home) is None
    fault = unforeseen_fault(OSError(errno.EISDIR, "", str(inside)), home)
    assert fault is not None
    assert fault.fix == f"move it away: mv {inside} {inside}.damaged"
