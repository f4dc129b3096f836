"""Writes, locks and sweeps that a crash cannot leave half done."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.core.cancellation import begin
from tasks.core.errors import BusyError, DiskFullError, StageCancelledError
from tasks.core.files import (
    create_exclusively,
    file_lock,
    open_private,
    scratch_folder,
    sweep_dead_writers,
    sweep_parts,
    write_atomically,
)


def test_a_write_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.json"
    write_atomically(path, "old")
    write_atomically(path, b"new")
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["state.json"]


def test_creation_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    assert create_exclusively(path, "first")
    assert not create_exclusively(path, "second")
    assert path.read_text() == "first"
    assert os.listdir(tmp_path) == ["record.json"]


def test_a_write_to_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (write_atomically, create_exclusively):
        with pytest.raises(DiskFullError):
            write(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["state.json"]


def test_a_lock_held_elsewhere_is_busy_and_ends_with_its_holder(tmp_path: Path) -> None:
    lock = tmp_path / "deploy-a.lock"
    code = (
        "import sys, pathlib\nfrom tasks.core.files import file_lock\n"
        "with file_lock(pathlib.Path(sys.argv[1]), wait=True, holder='a'):\n"
        "    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(BusyError, match="the service a"),
            file_lock(lock, wait=False, holder="the service a"),
        ):
            pass
        holder.kill()
    with file_lock(lock, wait=False, holder="the service a"):
        pass


def test_a_wait_for_a_lock_ends_when_the_run_is_cancelled(tmp_path: Path) -> None:
    lock, signal = tmp_path / "lock", begin()
    signal.cancel("staging says corrupt")
    with (
        file_lock(lock, wait=True, holder="a"),
        pytest.raises(StageCancelledError, match="staging says corrupt"),
        file_lock(lock, wait=True, holder="a"),
    ):
        pass


def test_a_scratch_folder_is_rid_of_what_a_killed_run_left_and_of_its_own(tmp_path: Path) -> None:
    place = tmp_path / "scores.part"
    place.mkdir()
    (place / "asked.json").write_text("a text of the user")

    def run() -> None:
        with scratch_folder(place) as scratch:
            assert list(scratch.iterdir()) == []
            (scratch / "asked.json").write_text("another")
            raise BusyError("taken")

    with pytest.raises(BusyError):
        run()
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_removes_unfinished_files_and_folders_only(tmp_path: Path) -> None:
    (tmp_path / "model.part" / "inner.part").mkdir(parents=True)
    (tmp_path / "shard.safetensors.part").write_text("x")
    (tmp_path / "shard.safetensors").write_text("x")
    removed = sweep_parts(tmp_path)
    assert sorted(path.name for path in removed) == ["model.part", "shard.safetensors.part"]
    assert os.listdir(tmp_path) == ["shard.safetensors"]


def test_a_killed_writers_file_is_removed_and_a_living_ones_is_not(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    dead, living = tmp_path / f"a.json.{ended.pid}.part", tmp_path / f"b.json.{os.getpid()}.part"
    other = tmp_path / "model.safetensors.part"
    for path in (dead, living, other):
        path.write_text("x")
    assert sweep_dead_writers(tmp_path) == [dead]
    assert living.exists()
    assert other.exists()


@pytest.mark.parametrize("private", [True, False])
def test_files_are_for_their_owner_alone_unless_a_user_asked_for_them(tmp_path: Path, private: bool) -> None:
    before = os.umask(0o022)
    try:
        (tmp_path / f"written.{os.getpid()}.part").touch()  # left by another process of this id
        write_atomically(tmp_path / "written", "x", private=private)
        create_exclusively(tmp_path / "created", "x", private=private)
    finally:
        os.umask(before)
    modes = {(tmp_path / name).stat().st_mode & 0o777 for name in ("written", "created")}
    assert modes == {0o600 if private else 0o644}


def test_a_log_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "server.log"
    log.parent.mkdir()
    log.write_text("before\n")
    log.chmod(0o644)
    with open_private(log, "ab") as file:
        file.write(b"after\n")
    assert log.read_text() == "before\nafter\n"
    assert log.stat().st_mode & 0o777 == 0o600
