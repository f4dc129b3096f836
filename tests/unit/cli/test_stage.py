"""`slipway stage` and `slipway bench`, as people and programs call them."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blocks.storage.record_store import open_record_store
from deployments.cli.main import main
from flows.stage_model import stage_model
from tasks.core.files import file_lock
from tasks.core.manifest import Manifest, StagedFile
from tasks.core.records import Record
from tasks.core.settings import Settings
from tasks.core.verdicts import StageName
from tasks.staging.apply import lock_of
from tasks.staging.models import StagingRequest
from tasks.staging.store import FRESH_S


@pytest.fixture(autouse=True)
def home(slipway_home: Path) -> Path:
    return slipway_home


def slipway(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    code = ended.value.code
    assert isinstance(code, int)
    return code


def answer(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    document = json.loads(capsys.readouterr().out)
    assert isinstance(document, dict)
    return document


def records(stage: StageName = StageName.STAGING) -> list[Record]:
    return list(open_record_store(Settings.load()).list(stage))


def test_copy_repair_and_verify(
    random_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "staged"
    copy = ["stage", "copy", random_model, "--to", folder, "--shards", "2", "--json"]
    assert slipway(*copy) == 0
    first = answer(capsys)
    assert (
        first["bytes"]
        == first["copied_bytes"]
        == sum(path.stat().st_size for path in folder.iterdir()) - (Path(first["manifest"]).stat().st_size)
    )
    assert [shard["bytes"] for shard in first["shards"]] == [
        (folder / shard["file"]).stat().st_size for shard in first["shards"]
    ]
    assert (first["cached"], first["verdict"], records()[0].id) == (False, "verified", first["record"])

    assert slipway(*copy) == 0
    assert (again := answer(capsys))["cached"]
    assert again["copied_bytes"] == 0

    harmed = first["shards"][1]["file"]
    (folder / harmed).unlink()
    assert slipway("stage", "verify", folder, "--json") == 3
    verdict = answer(capsys)
    assert (verdict["verdict"], verdict["damaged"]) == ("corrupt", [harmed])
    assert slipway("stage", "verify", folder) == 3
    assert f"missing or damaged: {harmed}" in capsys.readouterr().out

    assert slipway(*copy) == 0
    repaired = answer(capsys)
    assert repaired["restaged"] == [harmed]
    assert repaired["copied_bytes"] == first["shards"][1]["bytes"]
    assert slipway("stage", "verify", folder) == 0
    assert capsys.readouterr().out.startswith("verified: 6 files")


def test_a_folder_that_is_being_written_is_not_judged(
    random_model: Path, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "staged"
    assert slipway("stage", "copy", random_model, "--to", folder) == 0
    capsys.readouterr()
    with file_lock(lock_of(folder, home / "leases"), wait=False, holder="the test"):
        assert slipway("stage", "verify", folder) == 1
    assert f"another run is already working on {folder}" in capsys.readouterr().err
    with file_lock(lock_of(folder, home / "leases"), wait=False, holder="another reader", shared=True):
        assert slipway("stage", "verify", folder) == 0


@pytest.mark.parametrize(
    "command", ["copy X --to Y", "copy file:X --to Y", "copy Y --to X", "verify X", "gc X"]
)
def test_what_is_not_utf8_is_refused_in_one_line(
    command: str, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/model-\xff")
    words = [word.replace("X", odd).replace("Y", str(tmp_path / "y")) for word in command.split()]
    assert slipway("stage", *words) == 2
    error = capsys.readouterr().err
    assert "is not UTF-8\n  fix: rename the file or folder" in error
    assert error.replace("\n", "").isprintable()
    assert not (home / "records").exists()


def test_a_working_folder_that_is_not_utf8_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/model-\xff"))
    odd.mkdir()
    monkeypatch.chdir(odd)
    assert slipway("stage", "copy", ".", "--to", "x") == 2
    assert "is not UTF-8" in capsys.readouterr().err


def test_verify_mends_from_the_source_what_it_finds(
    random_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "staged"
    assert slipway("stage", "copy", random_model, "--to", folder, "--json") == 0
    shard = answer(capsys)["shards"][0]["file"]
    whole = (folder / shard).read_bytes()
    (folder / shard).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert slipway("stage", "verify", folder, "--repair") == 0
    out = capsys.readouterr().out
    assert out.startswith("verified: 5 files")
    assert f"  repaired from file:{random_model}: {shard}" in out
    assert (folder / shard).read_bytes() == whole
    record = records()[-1]
    assert (record.outcome, record.evidence["result"]["restaged"]) == ("verified", [shard])
    assert slipway("stage", "verify", folder, "--repair", "--json") == 0
    assert answer(capsys)["repaired"] == []
    remember_other_bytes(folder, shard)
    assert slipway("stage", "verify", folder, "--repair", "--json") == 3
    said = answer(capsys)
    assert (said["verdict"], said["damaged"], said["repaired"]) == ("corrupt", [shard], [])
    assert records()[-1].outcome == "corrupt"


def test_the_number_of_ranks_is_part_of_what_was_asked(
    random_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = ["stage", "copy", random_model, "--to", tmp_path / "staged", "--tensor-parallel", "4", "--json"]
    assert slipway(*copy) == 0
    assert len(answer(capsys)["shards"]) == 1  # shards for each rank would be tiny
    assert slipway(*copy) == 0
    assert answer(capsys)["cached"]


def test_people_read_what_was_done(
    random_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(random_model, tmp_path / "source")
    (tmp_path / "source" / "training_args.bin").touch()
    for expected in ("1 shard, 0.7 MB; 0.7 MB copied", "already there, verified"):
        assert slipway("stage", "copy", tmp_path / "source", "--to", tmp_path / "staged") == 0
        out = capsys.readouterr().out
        assert f"verified: {expected}" in out
        assert ("training_args.bin has pickled weights" in out) == ("copied" in expected)


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ("0", "0 is not in the range"),
        ("many", "is not a valid integer"),
        ("9999", "9999 shards are not possible"),
    ],
)
def test_wrong_numbers_of_shards_are_wrong_use(
    random_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], shards: str, message: str
) -> None:
    assert slipway("stage", "copy", random_model, "--to", tmp_path / "staged", "--shards", shards) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "staged").exists()


def test_faults_are_one_line_and_recorded(
    random_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert slipway("stage", "copy", tmp_path / "none", "--to", tmp_path / "staged") == 2
    assert f"error: the model folder {tmp_path}/none does not exist" in capsys.readouterr().err
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").touch()
    assert slipway("stage", "copy", tmp_path / "pickled", "--to", tmp_path / "staged", "--json") == 1
    said = answer(capsys)
    assert "pytorch_model.bin has pickled weights" in said["what"]
    assert "safetensors" in said["fix"]
    assert [record.outcome for record in records()] == ["fault", "fault"]
    assert slipway("stage", "verify", random_model) == 1
    assert "does not contain a staged model" in capsys.readouterr().err


def link_to_itself(source: Path) -> None:
    (source / "tokenizer.model").symlink_to("tokenizer.model")


def name_that_is_not_utf8(source: Path) -> None:
    (source / os.fsdecode(b"notes-\xff")).touch()


def name_that_is_too_long(source: Path) -> None:
    (source / ("x" * 250 + ".json")).touch()


def file_in_the_way(source: Path) -> None:
    (source.parent / "staged").touch()


@pytest.mark.parametrize(
    ("harm", "code", "message"),
    [
        (link_to_itself, 1, "tokenizer.model is a link to itself"),
        (name_that_is_not_utf8, 1, "contains a file whose name is not UTF-8"),
        (name_that_is_too_long, 1, "has a name of 255 bytes"),
        (file_in_the_way, 2, "staged exists already, and is not a folder"),
    ],
)
def test_odd_files_end_in_one_line_and_a_record(
    random_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    harm: Callable[[Path], None],
    code: int,
    message: str,
) -> None:
    shutil.copytree(random_model, tmp_path / "source")
    harm(tmp_path / "source")
    assert slipway("stage", "copy", tmp_path / "source", "--to", tmp_path / "staged", "--json") == code
    said = answer(capsys)
    assert message in said["what"]
    assert said["fix"]
    (record,) = records()
    assert record.evidence["error"] == {
        name: said[name] for name in ("error", "what", "fix", "detail", "retryable")
    }


def remember_other_bytes(folder: Path, path: str) -> None:
    manifest = Manifest.read(folder)
    files = tuple(
        StagedFile.of(file.path, file.size_bytes, file.kind, ["00" * 32]) if file.path == path else file
        for file in manifest.files
    )
    (folder / "manifest.json").write_text(manifest.model_copy(update={"files": files}).render())


def test_a_source_that_rots_is_a_verdict_that_says_no(
    random_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The manifest remembers other bytes than an untouched source gives."""
    folder = tmp_path / "staged"
    assert slipway("stage", "copy", random_model, "--to", folder, "--json") == 0
    shard = answer(capsys)["shards"][0]
    remember_other_bytes(folder, shard["file"])
    assert slipway("stage", "copy", random_model, "--to", folder, "--json") == 3
    said = answer(capsys)
    assert (said["verdict"], said["damaged"], said["shards"]) == ("corrupt", [shard["file"]], [])
    assert slipway("stage", "copy", random_model, "--to", folder) == 3
    assert f"corrupt: {shard['file']} has changed at the source" in capsys.readouterr().out


def test_staged_models_are_kept_below_a_limit(
    random_model: Path, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [StagingRequest(model=f"file:{random_model}", shards=n, disk_benchmark=False) for n in (1, 2, 3)]
    first = stage_model.plain(wanted[0]).result.model_dir
    assert slipway("stage", "gc", "--limit", "0") == 0
    assert "it was used within the last hour" in capsys.readouterr().out
    hours_ago = time.time() - 2 * FRESH_S
    os.utime(lock_of(first, home / "leases").with_suffix(".used"), (hours_ago, hours_ago))
    assert slipway("stage", "gc", "--limit", "0", "--dry-run") == 0
    assert capsys.readouterr().out.startswith(f"would remove {first} (0.7 MB)")
    assert slipway("stage", "gc", "--limit", "1Gi", "--json") == 0
    said = answer(capsys)
    assert (said["removed"], said["kept"][0]["in_use"]) == ([], None)
    monkeypatch.setenv("SLIPWAY_MODELS_LIMIT", "1Mi")
    second = stage_model.plain(wanted[1]).result
    assert second.findings[0].startswith(f"removed to make room: {first.name}, 0.7 MB")
    assert not first.exists()
    stage_model.plain(wanted[2])  # the second is in use: the limit is exceeded
    assert second.model_dir.exists()
    assert slipway("stage", "gc", "--limit", "much") == 2
    assert "'much' is not a size such as 512Mi" in capsys.readouterr().err
    monkeypatch.setenv("SLIPWAY_MODELS_LIMIT", "much")
    assert slipway("stage", "gc", "--limit", "0") == 2
    assert "SLIPWAY_MODELS_LIMIT is 'much', not a size such as" in capsys.readouterr().err


@pytest.mark.fio
def test_a_disk_is_measured_once_in_seven_days(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert slipway("bench", "disk", tmp_path / "disk", "--json") == 0
    first = answer(capsys)
    assert first["verdict"] in ("verified", "slow")
    assert first["read_mb_s"] > 0
    assert not first["cached"]
    assert slipway("bench", "disk", tmp_path / "disk", "--json") == 0
    assert answer(capsys)["record"] == first["record"]
    assert slipway("bench", "disk", tmp_path / "disk") == 0
    assert "(measured before)" in capsys.readouterr().out
    assert slipway("bench", "disk", tmp_path / "disk", "--fresh", "--json") == 0
    assert answer(capsys)["record"] != first["record"]
    assert len(records(StageName.DISK)) == 2


def test_without_fio_the_disk_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slipway("bench", "disk", tmp_path) == 1
    assert "fix: install it: apt install fio" in capsys.readouterr().err
