"""A staged folder is whole, or damaged in files that can be named."""

from __future__ import annotations

from pathlib import Path

import pytest
from blake3 import blake3

from tasks.core.cancellation import begin
from tasks.core.direct_io import CHUNK_BYTES
from tasks.core.errors import ModelError, StageCancelledError
from tasks.core.manifest import (
    MANIFEST_FILE,
    Manifest,
    StagedFile,
    damaged_chunks,
    damaged_files,
    is_intact,
    verify,
)


def staged(folder: Path, **contents: bytes) -> Manifest:
    files = []
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        pieces = [content[start : start + CHUNK_BYTES] for start in range(0, len(content), CHUNK_BYTES)]
        chunks = [blake3(piece).hexdigest() for piece in pieces]
        files.append(StagedFile.of(name, len(content), "weights", chunks))
    manifest = Manifest(source="file:/x", source_digest="sha256:0", files=tuple(files))
    (folder / MANIFEST_FILE).write_text(manifest.render())
    return manifest


def test_a_whole_folder_is_intact(tmp_path: Path) -> None:
    manifest = staged(tmp_path, a=b"one", b=b"two" * 10_000_000)
    assert verify(tmp_path) == (manifest, ())
    assert is_intact(tmp_path, manifest.digest)
    assert not is_intact(tmp_path, "sha256:another")


def test_missing_shortened_and_flipped_files_are_named(tmp_path: Path) -> None:
    manifest = staged(tmp_path, gone=b"one", short=b"two", flipped=b"three", fine=b"four")
    (tmp_path / "gone").unlink()
    (tmp_path / "short").write_bytes(b"tw")
    (tmp_path / "flipped").write_bytes(b"thref")
    assert verify(tmp_path)[1] == ("gone", "short", "flipped")
    assert not is_intact(tmp_path, manifest.digest)


def test_the_chunk_that_is_harmed_is_named(tmp_path: Path) -> None:
    manifest = staged(tmp_path, w=bytes(3 * CHUNK_BYTES + 1), v=b"")
    with (tmp_path / "w").open("r+b") as file:
        for position in (CHUNK_BYTES, 3 * CHUNK_BYTES):
            file.seek(position)
            file.write(b"x")
    assert damaged_chunks(tmp_path, manifest.files) == {"w": (1, 3)}


def test_a_manifest_that_does_not_cover_its_files_hides_nothing(tmp_path: Path) -> None:
    staged(tmp_path, w=b"one")
    file = StagedFile.of("w", 3, "weights", [])
    assert damaged_files(tmp_path, [file]) == ("w",)


def test_any_changed_byte_of_the_manifest_itself_is_found(tmp_path: Path) -> None:
    staged(tmp_path, w=b"one")
    path = tmp_path / MANIFEST_FILE
    whole = path.read_bytes()
    for position in range(len(whole)):
        for change in (1, 0x20):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ change]) + whole[position + 1 :])
            with pytest.raises(ModelError, match=r"manifest\.json is (damaged|of the format)"):
                verify(tmp_path)


def test_a_manifest_of_another_version_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_text('{"schema": "slipway.manifest/1", "files": []}')
    with pytest.raises(ModelError, match=r"of the format 'slipway\.manifest/1', which this version") as error:
        verify(tmp_path)
    assert error.value.fix == "remove the folder and stage the model again"


def test_paths_of_a_manifest_stay_inside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"one")
    folder = tmp_path / "model"
    folder.mkdir()
    for path in ("../secret", str(tmp_path / "secret")):
        file = StagedFile.of(path, 3, "weights", [blake3(b"one").hexdigest()])
        assert damaged_files(folder, [file]) == (path,)


def test_a_link_to_itself_is_damage(tmp_path: Path) -> None:
    (tmp_path / "w").symlink_to("w")
    file = StagedFile.of("w", 3, "weights", ["00" * 32])
    assert damaged_files(tmp_path, [file]) == ("w",)


def test_a_folder_in_the_place_of_a_file_is_damage(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    size = (tmp_path / "w").stat().st_size
    file = StagedFile.of("w", size, "weights", ["00" * 32])
    assert damaged_files(tmp_path, [file]) == ("w",)


def test_no_manifest_or_a_broken_one_is_a_clear_fault(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not contain a staged model"):
        verify(tmp_path)
    (tmp_path / MANIFEST_FILE).write_text("{")
    with pytest.raises(ModelError, match=r"manifest\.json is damaged"):
        verify(tmp_path)
    assert not is_intact(tmp_path, "sha256:0")


def test_verifying_stops_when_another_stage_says_no(tmp_path: Path) -> None:
    staged(tmp_path, a=b"one")
    begin().cancel("the driver is too old")
    with pytest.raises(StageCancelledError, match="the driver is too old"):
        verify(tmp_path)
    begin()
