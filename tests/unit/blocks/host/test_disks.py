"""File systems of folders, by the mount table and the sysfs of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blocks.host import disks
from blocks.host.disks import read_disks, rotational
from tasks.core.files import mount_of


def test_the_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    (disk,) = read_disks([tmp_path, tmp_path / "not" / "yet"])
    mount = mount_of(tmp_path)
    assert disk.mount == str(mount)
    assert mount.stat().st_dev == tmp_path.stat().st_dev
    assert disk.file_system
    assert disk.size_bytes is not None
    assert 0 < (disk.free_bytes or 0) < disk.size_bytes


def test_a_folder_whose_name_is_no_text(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    (disk,) = read_disks([folder])
    assert disk.mount.encode()


def test_each_file_system_once() -> None:
    found = read_disks([Path("/"), Path("/usr"), Path("/proc")])
    assert [disk.mount for disk in found][-1] == "/proc"
    assert len({disk.mount for disk in found}) == len(found)
    assert (found[-1].file_system, found[-1].rotational) == ("proc", None)


def test_the_kernels_word_of_a_whole_disk_and_of_its_partition(tmp_path: Path) -> None:
    whole = tmp_path / "devices" / "sda"
    (whole / "queue").mkdir(parents=True)
    (whole / "sda1").mkdir()
    (whole / "sda1" / "partition").write_text("1\n")
    for name, target in (("8:0", whole), ("8:1", whole / "sda1")):
        (tmp_path / name).symlink_to(target)
    for text, expected in (("1\n", True), ("0\n", False)):
        (whole / "queue" / "rotational").write_text(text)
        assert [rotational(os.makedev(8, minor), tmp_path) for minor in (0, 1)] == [expected, expected]
    assert rotational(os.makedev(0, 44), tmp_path) is None
    assert rotational(os.makedev(8, 0), tmp_path / "masked") is None


def test_this_machines_sysfs() -> None:
    numbers = [file.name.split(":") for file in Path("/sys/dev/block").glob("*")]
    assert all(rotational(os.makedev(int(major), int(minor))) in (True, False) for major, minor in numbers)


def test_a_file_system_that_does_not_answer_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: str) -> None:
        raise OSError("Transport endpoint is not connected")

    monkeypatch.setattr(disks.psutil, "disk_usage", gone)
    assert read_disks([Path("/")]) == ()
