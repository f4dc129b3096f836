"""A staged folder is whole, or damaged in files that can be named."""

from __future__ import annotations

from pathlib import Path

import pytest
from blake3 import blake3

from tasks.core.cancellation import begin
from tasks.core.errors import ModelError, StageCancelledError
from tasks.core.manifest import MANIFEST_FILE, Manifest, StagedFile, damaged_files, is_intact, verify


def staged(folder: Path, **contents: bytes) -> Manifest:
    files = []
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        digest = f"blake3:{blake3(content).hexdigest()}"
        files.append(StagedFile(path=name, size_bytes=len(content), digest=digest, kind="weights"))
    manifest = Manifest(source="file:/x", source_digest="sha256:0", files=tuple(files))
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(by_alias=True))
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


def test_paths_of_a_manifest_stay_inside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"one")
    folder = tmp_path / "model"
    folder.mkdir()
    digest = f"blake3:{blake3(b'one').hexdigest()}"
    for path in ("../secret", str(tmp_path / "secret")):
        file = StagedFile(path=path, size_bytes=3, digest=digest, kind="weights")
        assert damaged_files(folder, [file]) == (path,)


def test_a_folder_in_the_place_of_a_file_is_damage(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    size = (tmp_path / "w").stat().st_size
    file = StagedFile(path="w", size_bytes=size, digest="blake3:0", kind="weights")
    assert damaged_files(tmp_path, [file]) == ("w",)


def test_no_manifest_or_a_broken_one_is_a_clear_fault(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no staged model"):
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
