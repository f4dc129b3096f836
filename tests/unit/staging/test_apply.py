"""Copies that are exact, resumable and repairable, from real folders to real folders."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_safetensors import Plain, read_model, read_plain, write_plain
from random_model import write_random_model
from small_gguf import write_gguf

from blocks.storage.model_source import FolderSource
from tasks.core.cancellation import begin
from tasks.core.direct_io import Buffer, Took
from tasks.core.errors import ModelError, StageCancelledError, UnreadableError, WrongUseError
from tasks.core.files import file_lock
from tasks.core.manifest import MANIFEST_FILE, Manifest, StagedFile, verify
from tasks.core.safetensors import BITS
from tasks.staging.apply import (
    Staged,
    lock_of,
    plan_copy,
    repair_model,
    stage_model,
    sweep_abandoned,
)
from tasks.staging.copier import missing_bytes
from tasks.staging.ledger import LEDGER_FILE
from tasks.staging.models import SourceFile
from tasks.staging.source import ModelSource, pin


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_random_model(tmp_path / "source", shards=2)


CHUNK = 64 << 10


class Between(FolderSource):
    """A folder's files, with something happening before the n-th read of weights; `copied` counts those bytes."""

    parallel = 1  # type: ignore[assignment]

    def __init__(self, folder: Path, at: int, act: Callable[[], object]) -> None:
        super().__init__(folder)
        self.left, self.act, self.copied = at, act, 0

    def read_into(
        self, file: SourceFile, offset: int, length: int, buffer: Buffer, at: int, took: Took
    ) -> None:
        if file.path.endswith(".safetensors"):
            self.left -= 1
            if self.left == 0:
                self.act()
            self.copied += length
        super().read_into(file, offset, length, buffer, at, took)


def stage(
    source: Path | ModelSource, folder: Path, shards: int = 4, *, own: bool = False, convertible: bool = True
) -> Staged:
    pinned = pin(FolderSource(source) if isinstance(source, Path) else source)
    plan = plan_copy(pinned, shards, convertible=convertible)
    return stage_model(pinned, plan, folder, leases=folder.parent / "leases", own=own, chunk_bytes=CHUNK)


def parts_in(folder: Path) -> list[Path]:
    return list(folder.rglob("*.part"))


def test_a_quantized_model_is_copied_with_its_scales_and_side_files(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "modelopt"
    shutil.copytree(model, source)
    for file in source.glob("*.safetensors*"):
        file.unlink()
    packed = bytes(range(64))
    tensors = {
        "a.weight": ("U8", (8, 8), packed),
        "a.weight_scale": ("F8_E4M3", (8, 1), packed[:8]),
        "a.weight_scale_2": ("F32", (), packed[:4]),  # a scalar
        "b.weight": ("F8_E4M3", (8, 8), packed),
        "b.weight_scale_inv": ("F8_E8M0", (1, 1), packed[5:6]),
    }
    write_plain(source / "model.safetensors", tensors)
    (source / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "NVFP4"}}')
    (source / "quantize_config.json").write_text("{}")
    done = stage(source, tmp_path / "staged", shards=2, convertible=False)
    assert read_model(tmp_path / "staged") == tensors
    for name in ("hf_quant_config.json", "quantize_config.json", "config.json"):
        assert (tmp_path / "staged" / name).read_bytes() == (source / name).read_bytes()
    assert done.findings[0] == "comes quantized: modelopt, nvfp4"
    (source / "hf_quant_config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"hf_quant_config\.json is not a JSON object"):
        stage(source, tmp_path / "other", convertible=False)
    assert not (tmp_path / "other").exists()


def test_a_copy_holds_the_same_tensors_and_verifies(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "staged"
    done = stage(model, folder)
    assert read_model(folder) == read_model(model)
    manifest, damaged = verify(folder)
    assert damaged == ()
    assert manifest == done.manifest
    assert len(manifest.shards) == 4
    assert done.copied_bytes == manifest.size_bytes
    assert (folder / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    assert not (folder / LEDGER_FILE).exists()
    assert not parts_in(folder)
    for shard in manifest.shards:
        content = (folder / shard.path).read_bytes()
        assert (8 + int.from_bytes(content[:8], "little")) % 4096 == 0


def test_the_same_model_gives_the_same_bytes_wherever_it_lies(model: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(model, moved)
    first, second = stage(model, tmp_path / "a").manifest, stage(moved, tmp_path / "b").manifest
    assert first is not None
    assert second is not None
    assert first.digest == second.digest
    assert first.source_digest != second.source_digest


def test_a_second_run_copies_nothing(model: Path, tmp_path: Path) -> None:
    first = stage(model, tmp_path / "staged")
    second = stage(model, tmp_path / "staged")
    assert (second.copied_bytes, second.restaged, second.manifest) == (0, (), first.manifest)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_missing_shard_is_restaged_alone(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "staged"
    first = stage(model, folder)
    assert first.manifest is not None
    shard = first.manifest.shards[1]
    (folder / shard.path).unlink()
    others = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = stage(model, folder)
    assert again.restaged == (shard.path,)
    assert again.copied_bytes == shard.size_bytes
    assert again.manifest == first.manifest
    assert verify(folder)[1] == ()
    assert all(path.stat().st_mtime_ns == time for path, time in others.items())


@pytest.mark.parametrize("moved", [False, True])
def test_of_a_harmed_shard_one_chunk_is_replaced(model: Path, tmp_path: Path, moved: bool) -> None:
    folder = tmp_path / "staged"
    first = stage(model, folder)
    assert first.manifest is not None
    shard = first.manifest.shards[1]
    flip_a_byte(folder / shard.path)
    (model / "config.json").touch()
    assert verify(folder)[1] == (shard.path,)
    if moved:
        model = model.rename(tmp_path / "elsewhere")
    again = repair_model(pin(FolderSource(model)), folder, leases=tmp_path)
    assert again.restaged == (shard.path,)
    assert again.copied_bytes == CHUNK
    assert again.manifest == first.manifest
    assert verify(folder)[1] == ()


def test_another_model_repairs_nothing(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "staged"
    stage(model, folder)
    other = write_random_model(tmp_path / "other", family="llama")
    with pytest.raises(ModelError, match="is no longer the model that"):
        repair_model(pin(FolderSource(other)), folder, leases=tmp_path)
    twin = write_random_model(tmp_path / "twin", shards=2, seed=1)
    for path in folder.glob("*.safetensors"):
        flip_a_byte(path)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    done = repair_model(pin(FolderSource(twin)), folder, leases=tmp_path)
    assert (done.manifest, done.copied_bytes) == (None, 0)
    assert len(done.damaged) == 4
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(ModelError, match="does not contain a staged model"):
        repair_model(pin(FolderSource(twin)), tmp_path / "nothing", leases=tmp_path)


class Killed(BaseException):
    """Stands for a death at this point."""


def die() -> None:
    raise Killed


def test_an_interrupted_copy_goes_on_after_its_finished_chunks(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "staged"
    killed = Between(model, 8, die)
    with pytest.raises(Killed):
        stage(killed, folder)
    assert not (folder / MANIFEST_FILE).exists()
    assert parts_in(folder)
    with (folder / LEDGER_FILE).open("a") as ledger:
        ledger.write('["model-00003-of-00004.safetensors", 0, "' + "00" * 32 + '"]\n')  # outlived its bytes
        ledger.write('["model-000')  # cut off by the kill
    (folder / f"{MANIFEST_FILE}.1234.part").write_bytes(b"of a run that was killed at its end")
    done = stage(resumed := Between(model, 0, die), folder)
    whole = Between(model, 0, die)
    stage(whole, tmp_path / "another")
    assert killed.copied + resumed.copied == whole.copied
    assert done.restaged == ()
    assert done.manifest == stage(model, folder).manifest
    assert read_model(folder) == read_model(model)
    assert not parts_in(folder)
    assert not (folder / LEDGER_FILE).exists()


def test_an_interrupted_copy_is_compared_before_it_goes_on(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "staged"
    with pytest.raises(Killed):
        stage(Between(model, 8, die), folder)
    finished, begun = folder / "model-00001-of-00004.safetensors", next(iter(parts_in(folder)))
    for path in (finished, begun):
        content = bytearray(path.read_bytes())
        content[10_000] ^= 1
        path.write_bytes(content)
    assert stage(model, folder).restaged == ()
    assert read_model(folder) == read_model(model)
    assert verify(folder)[1] == ()


def test_an_unfinished_copy_of_another_state_is_thrown_away(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "staged"
    with pytest.raises(Killed):
        stage(Between(model, 8, die), folder)
    write_random_model(model, shards=2, seed=1)
    done = stage(model, folder)
    assert done.manifest is not None
    assert done.copied_bytes == done.manifest.size_bytes
    assert read_model(folder) == read_model(model)


def test_a_source_that_cannot_be_read_for_now_leaves_a_copy_that_goes_on(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def harm() -> None:
        monkeypatch.setattr("tasks.core.direct_io.DirectFile.read_into", fail)

    harmed = Between(model, 8, harm)
    with pytest.raises(UnreadableError, match=r"safetensors cannot be read: Input/output error"):
        stage(harmed, tmp_path / "staged")
    monkeypatch.undo()
    done = stage(model, tmp_path / "staged")
    assert done.manifest is not None
    assert 0 < done.copied_bytes < done.manifest.size_bytes
    assert read_model(tmp_path / "staged") == read_model(model)


@pytest.mark.parametrize("change", ["rewritten", "replaced", "removed", "joined"])
def test_a_source_that_changes_underneath_leaves_nothing_behind(
    model: Path, tmp_path: Path, change: str
) -> None:
    weights = model / "model-00002-of-00002.safetensors"

    def act() -> None:
        content = weights.read_bytes()
        if change == "rewritten":
            weights.write_bytes(content)
        elif change == "replaced":
            (model / "new").write_bytes(content)
            (model / "new").rename(weights)
        elif change == "removed":
            weights.unlink()
        else:
            (model / "added_tokens.json").write_text("{}")

    with pytest.raises(ModelError, match=r"(changed|disappeared) while"):
        stage(Between(model, 8, act), tmp_path / "staged")
    assert not (tmp_path / "staged").exists()


def test_a_source_that_rots_silently_is_corrupt_and_changes_nothing(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "staged"
    pinned = pin(FolderSource(model))
    plan = plan_copy(pinned, 4, convertible=True)
    first = stage_model(pinned, plan, folder, leases=tmp_path, own=False)
    assert first.manifest is not None
    shard = first.manifest.shards[0].path
    (folder / shard).unlink()
    inner = FolderSource(model)

    class Rotten(FolderSource):
        def read_into(
            self, file: SourceFile, offset: int, length: int, buffer: Buffer, at: int, took: Took
        ) -> None:
            buffer.view[at : at + length] = bytes(byte ^ 1 for byte in inner.read(file, offset, length))
            took(buffer.view[at : at + length])

    rotten = pin(Rotten(model))
    done = stage_model(rotten, plan, folder, leases=tmp_path, own=False)
    assert (done.damaged, done.manifest, done.copied_bytes) == ((shard,), None, 0)
    assert Manifest.read(folder) == first.manifest
    assert not parts_in(folder)
    assert stage_model(pinned, plan, folder, leases=tmp_path, own=False).restaged == (shard,)


def test_a_folder_with_anything_else_in_it_is_left_alone(model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("precious")
    with pytest.raises(WrongUseError, match=r"is not empty: it contains config\.json"):
        stage(model, tmp_path / "mine")
    with pytest.raises(WrongUseError, match="is not empty"):
        stage(model, model)
    assert (tmp_path / "mine" / "config.json").read_text() == "precious"
    assert read_model(model)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["movie.mkv.part", "config.json.part", "ledger.jsonl", ".hidden.part"])
@pytest.mark.parametrize("content", [b"precious", b'["config.json", 0, "00"]\n', b'\n{"schema": "mine"}\n'])
def test_unfinished_files_of_somebody_else_are_not_taken_for_an_empty_folder(
    model: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    mine = tmp_path / "downloads"
    mine.mkdir()
    (mine / name).write_bytes(content)
    with pytest.raises(WrongUseError, match=f"is not empty: it contains {name}"):
        stage(model, mine)
    assert tree(mine) == {name: content}


def test_beside_a_copy_that_goes_on_the_users_unfinished_files_stay(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "staged"
    with pytest.raises(Killed):
        stage(Between(model, 8, die), folder)
    (folder / "other.iso.part").write_bytes(b"precious")
    first = stage(model, folder).manifest
    assert first is not None
    assert [path.name for path in parts_in(folder)] == ["other.iso.part"]
    flip_a_byte(folder / first.shards[0].path)
    assert repair_model(pin(FolderSource(model)), folder, leases=tmp_path).restaged
    assert stage(model, folder).copied_bytes == 0
    assert (folder / "other.iso.part").read_bytes() == b"precious"


def test_what_no_copy_goes_on_with_is_swept_from_slipways_own_folder(model: Path, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "of-another-copy.part").touch()
    stage(model, tmp_path / "own", own=True)
    assert not parts_in(tmp_path / "own")


def test_of_an_unfinished_copy_of_another_state_everything_goes_and_nothing_else(
    model: Path, tmp_path: Path
) -> None:
    """Files whose room is reserved and that no chunk has reached are named by the ledger, too."""
    folder = tmp_path / "staged"
    with pytest.raises(Killed):
        stage(Between(model, 1, die), folder, shards=6)
    stage(model, folder, shards=4)
    assert not parts_in(folder)
    assert verify(folder)[1] == ()


def test_a_sources_unfinished_files_are_left_behind(model: Path, tmp_path: Path) -> None:
    (model / "LICENSE.part").write_text("half a licence")
    models = tmp_path / "models"
    done = stage(model, models / "own", own=True)
    assert done.findings == ("not part of the model, not copied: LICENSE.part",)
    sweep_abandoned(models, models / "leases")
    assert verify(models / "own")[1] == ()
    assert done.manifest is not None
    names = (*done.manifest.files, StagedFile.of("LICENSE.part", 14, "side", ["00" * 32]))
    as_before = done.manifest.model_copy(update={"files": names})  # when they were staged
    (models / "own" / MANIFEST_FILE).write_text(as_before.render())
    assert stage(model, models / "own", own=True).manifest == done.manifest


def test_what_can_be_no_folder_is_wrong_use(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to("nowhere")
    for name, told in [
        ("file", "file exists already, and is not a folder"),
        ("link", "link exists already, and is not a folder"),
        ("file/below", "below cannot be created: Not a directory"),
        ("x" * 256, "cannot be created: File name too long"),
    ]:
        pinned = pin(FolderSource(model))
        plan = plan_copy(pinned, 4, convertible=True)
        with pytest.raises(WrongUseError, match=told):
            stage_model(pinned, plan, tmp_path / name, leases=tmp_path / "leases", own=False)
    assert (tmp_path / "file").read_text() == "precious"
    stage(model, tmp_path / "staged")
    (tmp_path / "staged" / MANIFEST_FILE).unlink()
    (tmp_path / "staged" / MANIFEST_FILE).mkdir()
    with pytest.raises(ModelError, match="is damaged: it is a folder"):
        stage(model, tmp_path / "staged")


def test_slipways_own_folder_heals_without_its_manifest(model: Path, tmp_path: Path) -> None:
    """Of files that nobody vouches for, too, only what differs from the source is written."""
    folder = tmp_path / "own"
    first = stage(model, folder, own=True)
    assert first.manifest is not None
    (folder / MANIFEST_FILE).write_text("{")
    flip_a_byte(folder / first.manifest.shards[1].path)
    inodes = {path.name: path.stat().st_ino for path in folder.glob("model*")}
    again = stage(model, folder, own=True)
    assert (again.manifest, again.copied_bytes) == (first.manifest, CHUNK)
    assert {path.name: path.stat().st_ino for path in folder.glob("model*")} == inodes
    assert verify(folder)[1] == ()


def longer(path: Path) -> None:
    """As a kill leaves a file between the write of its last block and the cut to its length."""
    with path.open("ab") as file:
        file.write(bytes(-file.tell() % 4096 or 4096))


def shorter(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize(("harm", "copied"), [(longer, False), (shorter, True)])
def test_a_file_of_another_length_is_mended_where_it_is(
    model: Path, tmp_path: Path, harm: Callable[[Path], None], copied: bool
) -> None:
    folder = tmp_path / "staged"
    first = stage(model, folder)
    assert first.manifest is not None
    shard = first.manifest.shards[1]
    harmed = folder / shard.path
    inode = harmed.stat().st_ino
    harm(harmed)
    assert verify(folder)[1] == (shard.path,)
    plan = plan_copy(pin(FolderSource(model)), 4, convertible=True)
    assert missing_bytes(plan.files, folder) < CHUNK
    again = repair_model(pin(FolderSource(model)), folder, leases=tmp_path)
    assert again.restaged == (shard.path,)
    assert again.copied_bytes == (shard.size_bytes % CHUNK if copied else 0)
    assert harmed.stat().st_ino == inode
    assert verify(folder)[1] == ()


def test_a_shard_that_was_moved_away_and_linked_back_is_staged_again(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "staged"
    first = stage(model, folder)
    assert first.manifest is not None
    shard = first.manifest.shards[1]
    moved = (folder / shard.path).rename(tmp_path / "moved")
    (folder / shard.path).symlink_to(moved)
    flip_a_byte(moved)
    outside = moved.read_bytes()
    assert verify(folder)[1] == (shard.path,)
    plan = plan_copy(pin(FolderSource(model)), 4, convertible=True)
    assert missing_bytes(plan.files, folder) >= shard.size_bytes
    (folder / f"{shard.path}.part").symlink_to(moved)
    again = repair_model(pin(FolderSource(model)), folder, leases=tmp_path)
    assert (again.restaged, again.copied_bytes) == ((shard.path,), shard.size_bytes)
    assert not (folder / shard.path).is_symlink()
    assert verify(folder)[1] == ()
    assert moved.read_bytes() == outside


def test_a_folder_in_the_place_of_a_file_is_named(model: Path, tmp_path: Path) -> None:
    first = stage(model, tmp_path / "staged")
    assert first.manifest is not None
    place = tmp_path / "staged" / first.manifest.shards[1].path
    place.unlink()
    place.mkdir()
    with pytest.raises(WrongUseError, match=f"{place} is a folder, but a file must be written there"):
        repair_model(pin(FolderSource(model)), tmp_path / "staged", leases=tmp_path)


def test_another_model_is_not_written_over_a_finished_one(model: Path, tmp_path: Path) -> None:
    stage(model, tmp_path / "staged")
    with pytest.raises(WrongUseError, match="already contains"):
        stage(model, tmp_path / "staged", shards=2)


def test_a_copy_stops_when_another_stage_says_no_and_goes_on_later(model: Path, tmp_path: Path) -> None:
    signal = begin()
    with pytest.raises(StageCancelledError):
        stage(Between(model, 8, lambda: signal.cancel("blocked")), tmp_path / "staged")
    begin()
    done = stage(model, tmp_path / "staged")
    assert done.manifest is not None
    assert 0 < done.copied_bytes < done.manifest.size_bytes


def test_what_killed_runs_left_is_swept_unless_somebody_works_there(tmp_path: Path) -> None:
    busy, idle = tmp_path / "models" / "busy", tmp_path / "models" / "idle"
    for folder in (busy, idle):
        folder.mkdir(parents=True)
        (folder / "x.part").touch()
    with file_lock(lock_of(busy, tmp_path), wait=False, holder="this test"):
        sweep_abandoned(tmp_path / "models", tmp_path)
    assert (busy / "x.part").exists()
    assert not (idle / "x.part").exists()
    (idle / "x.part").touch()
    (idle / LEDGER_FILE).touch()
    sweep_abandoned(tmp_path / "models", tmp_path)
    assert (idle / "x.part").exists()


def test_a_killed_repair_of_a_missing_file_goes_on_after_its_finished_chunks(
    model: Path, tmp_path: Path
) -> None:
    models, leases = tmp_path / "models", tmp_path / "leases"
    first = stage(model, models / "own", own=True).manifest
    assert first is not None
    shard = first.shards[1]
    (models / "own" / shard.path).unlink()
    with pytest.raises(Killed):
        repair_model(pin(Between(model, 3, die)), models / "own", leases=leases)
    (models / "own" / "of-another-copy.part").touch()
    sweep_abandoned(models, leases)
    assert [path.name for path in parts_in(models)] == [f"{shard.path}.part"]
    again = repair_model(pin(FolderSource(model)), models / "own", leases=leases)
    assert again.restaged == (shard.path,)
    assert again.copied_bytes == shard.size_bytes - 2 * CHUNK
    assert again.manifest == first
    assert verify(models / "own")[1] == ()
    assert not parts_in(models)


def test_whatever_is_wrong_with_a_model_is_found_before_anything_is_written(
    model: Path, tmp_path: Path
) -> None:
    weights = model / "model-00001-of-00002.safetensors"
    whole = weights.read_bytes()
    for harmed, message in [
        (whole[:-1], "it is truncated"),
        ((1 << 40).to_bytes(8, "little") + whole[8:], "header claims"),
        (whole[:8] + b"#" + whole[9:], "not JSON"),
        (b"", "too few for a header"),
        ((0).to_bytes(8, "little"), "not JSON"),
    ]:
        weights.write_bytes(harmed)
        with pytest.raises(ModelError, match=message):
            stage(model, tmp_path / "staged")
    weights.unlink()
    with pytest.raises(ModelError, match=r"names the shard .*, which is missing"):
        stage(model, tmp_path / "staged")
    assert not (tmp_path / "staged").exists()


def test_an_architecture_that_cannot_be_served_is_refused_only_where_it_is_to_be(model: Path) -> None:
    (model / "config.json").write_text('{"architectures": ["MambaForCausalLM"]}')
    pinned = pin(FolderSource(model))
    with pytest.raises(ModelError, match="MambaForCausalLM"):
        plan_copy(pinned, "auto", convertible=True)
    assert plan_copy(pinned, "auto", convertible=False).files


def test_an_unknown_architecture_passes_with_a_remark_where_folders_are_loaded(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "architectures": ["NovelForCausalLM"]}))
    pinned = pin(FolderSource(model))
    plan = plan_copy(pinned, "auto", convertible=False, servable=True)
    assert any("does not know the architecture NovelForCausalLM" in one for one in plan.findings)
    with pytest.raises(ModelError, match="cannot convert the architecture NovelForCausalLM to GGUF"):
        plan_copy(pinned, "auto", convertible=True, servable=True)
    (model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": -1}))
    with pytest.raises(ModelError, match="num_hidden_layers is not a size"):
        plan_copy(pin(FolderSource(model)), "auto", convertible=False, servable=True)


def write_sums(model: Path, **wrong: str) -> None:
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(model.iterdir())}
    named = {name.replace("-", "_").replace(".", "_"): name for name in sums}
    sums |= {named[key]: digest for key, digest in wrong.items()}
    (model / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))


@pytest.mark.parametrize("resumed", [False, True])
def test_bytes_that_are_not_those_the_source_promises_are_refused(
    model: Path, tmp_path: Path, resumed: bool
) -> None:
    write_sums(model)
    stage(model, tmp_path / "first")
    write_sums(model, model_00002_of_00002_safetensors="00" * 32)
    folder = tmp_path / "staged"
    if resumed:
        with pytest.raises(Killed):
            stage(Between(model, 8, die), folder)
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors does not have the SHA-256"):
        stage(model, folder)
    assert not folder.exists() or resumed
    assert not list(folder.glob("*"))
    write_sums(model)
    with pytest.raises(Killed):
        stage(Between(model, 8, die), folder)
    stage(model, folder)
    assert read_model(folder) == read_model(model)


def test_sums_are_right_also_where_tensors_change_their_order(tmp_path: Path) -> None:
    model = tmp_path / "source"
    model.mkdir()
    (model / "config.json").write_text("{}")
    narrow, wide = bytes(range(251)) * 999, bytes(range(256)) * 1000
    write_plain(
        model / "model.safetensors",
        {"a": ("U8", (len(narrow),), narrow), "b": ("F32", (len(wide) // 4,), wide)},
    )
    write_sums(model)
    pinned = pin(FolderSource(model))
    plan = plan_copy(pinned, 1, convertible=False)
    stage_model(pinned, plan, tmp_path / "staged", leases=tmp_path, own=True, chunk_bytes=CHUNK)
    assert read_model(tmp_path / "staged") == read_model(model)


def test_a_hugging_face_cache_names_its_large_files_by_their_sha256(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--org--name"
    snapshot = cache / "snapshots" / ("c0" * 20)
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for path in model.iterdir():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        name = digest if path.suffix == ".safetensors" else digest[:40]
        shutil.copy(path, cache / "blobs" / name)
        (snapshot / path.name).symlink_to(f"../../blobs/{name}")
    stage(snapshot, tmp_path / "staged")
    weights = (snapshot / "model-00001-of-00002.safetensors").resolve()
    flip_a_byte(weights)
    with pytest.raises(ModelError, match="does not have the SHA-256 that the source states for it"):
        stage(snapshot, tmp_path / "another")
    (snapshot / "SHA256SUMS").write_text(f"{'00' * 32}  model-00001-of-00002.safetensors\n")
    with pytest.raises(ModelError, match="disagree about the SHA-256"):
        stage(snapshot, tmp_path / "another")


def test_gguf_comes_along_byte_for_byte(model: Path, tmp_path: Path) -> None:
    write_gguf(model / "q4.gguf")
    done = stage(model, tmp_path / "staged")
    assert (tmp_path / "staged" / "q4.gguf").read_bytes() == (model / "q4.gguf").read_bytes()
    assert done.manifest is not None
    assert len(done.manifest.shards) == 4
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(model / "q4.gguf", alone)
    pinned = pin(FolderSource(alone))
    with pytest.raises(ModelError, match="contains only GGUF files"):
        plan_copy(pinned, "auto", convertible=False, servable=True)
    plan = plan_copy(pinned, "auto", convertible=True)
    assert [file.kind for file in plan.files] == ["gguf"]


def test_a_manifest_of_the_former_format_says_so_and_slipways_own_is_staged_anew(
    model: Path, tmp_path: Path
) -> None:
    former = '{"schema": "slipway.manifest/1", "source": "file:/x", "source_digest": "sha256:0", "files": []}'
    for name in ("own", "given"):
        stage(model, tmp_path / name)
        (tmp_path / name / MANIFEST_FILE).write_text(former)
    assert stage(model, tmp_path / "own", own=True).manifest == Manifest.read(tmp_path / "own")
    with pytest.raises(ModelError, match=r"of the format 'slipway.manifest/1', which this version does not"):
        stage(model, tmp_path / "given")


@st.composite
def tensor_sets(draw: st.DrawFn) -> list[dict[str, Plain]]:
    names = draw(
        st.lists(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
            min_size=1,
            max_size=10,
            unique=True,
        )
    )
    files: list[dict[str, Plain]] = [{} for _ in range(draw(st.integers(1, 3)))]
    for name in names:
        dtype = draw(st.sampled_from(sorted(BITS)))
        shape = (*draw(st.lists(st.integers(0, 4), max_size=3)), 8)
        values = 1
        for size in shape:
            values *= size
        content = draw(st.randoms(use_true_random=False)).randbytes(values * BITS[dtype] // 8)
        if name != "__metadata__":
            draw(st.sampled_from(files))[name] = (dtype, shape, content)
    return files


@settings(max_examples=60, deadline=None)
@given(files=tensor_sets(), data=st.data())
def test_any_tensors_come_through_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, files: list[dict[str, Plain]], data: st.DataObject
) -> None:
    count = sum(map(len, files))
    if not count:
        return
    root = tmp_path_factory.mktemp("tensors")
    (root / "source").mkdir()
    (root / "source" / "config.json").write_text("{}")
    for number, tensors in enumerate(files):
        write_plain(root / "source" / f"part-{number}.safetensors", tensors, {"format": "pt"})
    shards = data.draw(st.integers(1, count))
    pinned = pin(FolderSource(root / "source"))
    plan = plan_copy(pinned, shards, convertible=False)
    done = stage_model(pinned, plan, root / "staged", leases=root, own=False)
    assert read_model(root / "staged") == read_model(root / "source")
    assert done.manifest is not None
    assert len(done.manifest.shards) == shards
    assert all(read_plain(root / "staged" / shard.path) for shard in done.manifest.shards)
    shutil.rmtree(root)
