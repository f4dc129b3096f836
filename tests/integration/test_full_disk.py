"""A disk that fills up: foreseen, and survived when it happens all the same. On a real, small file system."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from plain_safetensors import read_model, write_plain
from small_disk import small_disk_at

from blocks.host.fio import measure
from blocks.storage.model_source import FolderSource
from tasks.core.direct_io import Buffer, Took
from tasks.core.errors import DiskFullError
from tasks.core.manifest import MANIFEST_FILE
from tasks.staging.apply import plan_copy, repair_model, stage_model
from tasks.staging.models import SourceFile
from tasks.staging.source import pin

MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    with small_disk_at(tmp_path / "disk", "8m") as place:
        yield place


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Four tensors of 1 MiB."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    write_plain(source / "model.safetensors", {f"w{i}": ("U8", (MIB,), bytes([i]) * MIB) for i in range(4)})
    return source


def test_a_disk_too_small_is_foreseen_and_named(small_disk: Path, model: Path) -> None:
    (small_disk / "other").write_bytes(bytes(5 * MIB))
    pinned = pin(FolderSource(model))
    plan = plan_copy(pinned, 4, convertible=False)
    with pytest.raises(DiskFullError) as error:
        stage_model(pinned, plan, small_disk / "staged", leases=model.parent, own=True)
    assert f"the disk mounted at {small_disk} has 3.1 MB free" in error.value.what
    assert "4.2 MB do not fit" in error.value.what
    assert not list(small_disk.rglob("*.part"))
    assert list((small_disk / "staged").iterdir()) == []


@pytest.mark.parametrize("harm", ["manifest", "length"])
def test_a_model_is_mended_on_a_disk_without_room_for_a_second_one(
    small_disk: Path, model: Path, harm: str
) -> None:
    pinned = pin(FolderSource(model))
    plan = plan_copy(pinned, 1, convertible=False)
    folder = small_disk / "staged"
    first = stage_model(pinned, plan, folder, leases=model.parent, own=True)
    if harm == "manifest":
        (folder / MANIFEST_FILE).write_text("{")
    else:
        os.truncate(folder / "model-00001-of-00001.safetensors", 4 * MIB)
    (small_disk / "other").write_bytes(bytes(2 * MIB))
    again = stage_model(pinned, plan, folder, leases=model.parent, own=True)
    assert again.manifest == first.manifest
    assert read_model(folder) == read_model(model)


def test_room_for_a_file_in_the_place_of_a_link_is_foreseen(small_disk: Path, model: Path) -> None:
    pinned = pin(FolderSource(model))
    plan = plan_copy(pinned, 1, convertible=False)
    folder = small_disk / "staged"
    stage_model(pinned, plan, folder, leases=model.parent, own=True)
    shard = folder / "model-00001-of-00001.safetensors"
    shard.rename(small_disk / "moved")
    shard.symlink_to("../moved")
    with pytest.raises(DiskFullError, match=r"4\.2 MB do not fit"):
        repair_model(pinned, folder, leases=model.parent)
    assert shard.is_symlink()


@pytest.mark.parametrize(("inodes", "lacking"), [(1, "staged"), (2, "staged/ledger.jsonl")])
def test_a_disk_that_takes_no_further_file_is_named(
    tmp_path: Path, model: Path, inodes: int, lacking: str
) -> None:
    """As one without a free block, on which a folder or an empty file cannot be made either."""
    pinned = pin(FolderSource(model))
    plan = plan_copy(pinned, 1, convertible=False)
    with small_disk_at(tmp_path / "disk", f"8m,nr_inodes={inodes}") as disk:
        with pytest.raises(DiskFullError, match=f"no space left to write {disk}/{lacking}"):
            stage_model(pinned, plan, disk / "staged", leases=model.parent, own=False)
        assert [path.name for path in disk.rglob("*")] == ["staged"][: inodes - 1]


class FillingUp(FolderSource):
    """Something else takes the room while the third shard is on its way."""

    parallel = 1  # type: ignore[assignment]

    def __init__(self, folder: Path, filler: Path) -> None:
        super().__init__(folder)
        self.filler = filler
        self.reads = 0

    def read_into(
        self, file: SourceFile, offset: int, length: int, buffer: Buffer, at: int, took: Took
    ) -> None:
        self.reads += length == MIB
        if self.reads == 3:
            free = os.statvfs(self.filler.parent)
            self.filler.write_bytes(bytes(free.f_bavail * free.f_frsize - 256 * 1024))
        super().read_into(file, offset, length, buffer, at, took)


def test_room_is_reserved_before_the_first_byte(small_disk: Path, model: Path) -> None:
    """What fills the disk later takes nothing from a copy that has begun."""
    pinned = pin(FillingUp(model, small_disk / "filler"))
    plan = plan_copy(pinned, 4, convertible=False)
    stage_model(pinned, plan, small_disk / "staged", leases=model.parent, own=True)
    assert read_model(small_disk / "staged") == read_model(model)


def test_a_disk_that_fills_up_all_the_same_leaves_a_copy_that_goes_on(
    small_disk: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system that cannot reserve room."""
    monkeypatch.setattr("tasks.staging.copier.reserve", os.ftruncate)
    source = FillingUp(model, small_disk / "filler")
    pinned = pin(source)
    plan = plan_copy(pinned, 4, convertible=False)
    folder = small_disk / "staged"
    with pytest.raises(DiskFullError, match=r"no space left to write .*model-00003-of-00004"):
        stage_model(pinned, plan, folder, leases=model.parent, own=True)
    assert not (folder / MANIFEST_FILE).exists()
    (small_disk / "filler").unlink()
    done = stage_model(pinned, plan, folder, leases=model.parent, own=True)
    assert done.manifest is not None
    assert done.copied_bytes == sum(shard.size_bytes for shard in done.manifest.shards[2:]) + next(
        file.size_bytes for file in done.manifest.files if file.kind == "index"
    )
    assert read_model(folder) == read_model(model)


def test_a_disk_too_small_to_measure_is_named(small_disk: Path) -> None:
    with pytest.raises(DiskFullError, match=f"too little space to measure the disk mounted at {small_disk}"):
        measure(small_disk)
    assert list(small_disk.iterdir()) == []
