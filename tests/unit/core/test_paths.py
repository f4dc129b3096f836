"""Names from outside: each kind of bad name, at every place where such a name comes in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_s3 import FaultyS3, faulty_s3

from blocks.storage.sources import open_source
from tasks.core.errors import ModelError, NetworkError, UnsafeNameError
from tasks.core.manifest import MANIFEST_FILE, Manifest, StagedFile
from tasks.core.mlmodel import weights_folder
from tasks.core.paths import checked_file_name, inside, is_file_name, some_of
from tasks.staging.copier import copy
from tasks.staging.layout import PlannedFile
from tasks.staging.ledger import LEDGER_FILE, named_files
from tasks.staging.models import SourceFile
from tasks.staging.plan import read_index, select_files
from tasks.staging.source import pin

pytestmark = pytest.mark.slow

BAD = {
    "a parent": "../up.json",
    "a parent of a parent": "../../escaped/up.json",
    "a parent behind a folder": "a/../../up.json",
    "an absolute path": "/tmp/absolute.json",
    "two slashes": "//tmp/absolute.json",
    "an empty component": "a//b.json",
    "the folder itself": ".",
    "its parent": "..",
    "the folder itself in between": "a/./b.json",
    "a backslash": "..\\up.json",
    "a line break": "a\nb.json",
    "a terminal's escape": "a\x1b[2Jb.json",
    "a NUL": "a\0b.json",
    "a reversed direction": "a\u202ejson.exe",
    "half of a surrogate pair": "a\udcffb.json",
    "a long name": "n" * 300 + ".json",
    "a long name behind a folder": "a/" + "n" * 256 + ".json",
    "nothing": "",
}
NEVER_LISTED = {"nothing", "a NUL", "half of a surrogate pair", "a terminal's escape"}
"""XML, in which S3 lists keys, has no form for them."""

GOOD = ["config.json", "a b+c%20#1?.json", "größe.json", "..hidden", "a...b", "-x", "n" * 250 + ".json"]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with faulty_s3() as server:
        yield server


@pytest.mark.parametrize("name", BAD.values(), ids=BAD)
def test_a_bad_name_is_refused_in_one_printable_line(tmp_path: Path, name: str) -> None:
    assert not is_file_name(name)
    for refuse in (inside, lambda folder, name, where: checked_file_name(name, where)):
        with pytest.raises(UnsafeNameError, match="the manifest names the file") as error:
            refuse(tmp_path, name, "the manifest")
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 400
        assert error.value.fix


@pytest.mark.parametrize("name", GOOD)
def test_a_good_name_is_the_path_below_the_folder(tmp_path: Path, name: str) -> None:
    assert is_file_name(name)
    assert inside(tmp_path, name, "x") == tmp_path / name
    assert inside(tmp_path, f"a/{name}", "x") == tmp_path / "a" / name


@pytest.mark.parametrize("name", [None, 7, ["a"], b"a", {"a": 1}])
def test_what_is_not_text_is_refused(tmp_path: Path, name: object) -> None:
    with pytest.raises(UnsafeNameError, match="it is not text"):
        inside(tmp_path, name, "x")


def test_a_folder_on_the_way_may_not_lead_out(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "real").mkdir(parents=True)
    (home / "near").symlink_to("real")
    (home / "far").symlink_to(tmp_path)
    (home / "round").symlink_to("round")
    (home / "last").symlink_to(tmp_path / "x")
    assert inside(home, "near/file", "x") == home / "near" / "file"
    assert inside(home, "last", "x") == home / "last", "a writer replaces it"
    for name, follow in [("far/file", False), ("round/file", False), ("last", True), ("round", True)]:
        with pytest.raises(UnsafeNameError, match="it is a link"):
            inside(home, name, "x", follow=follow)


@pytest.mark.parametrize("name", [name for kind, name in BAD.items() if kind not in NEVER_LISTED])
def test_a_key_on_s3_that_leads_out_is_refused_before_anything_is_written(
    s3: FaultyS3, name: str, tmp_path: Path
) -> None:
    s3.upload({"config.json": b"{}", "model.gguf": b"GGUF", name: b"escaped"})
    s3.deviate(ignores_delimiter=True)
    source = open_source("s3://bucket/m", endpoint=s3.endpoint)
    with pytest.raises(UnsafeNameError, match="s3://bucket/m names the file"):
        source.list_files()


def test_a_server_that_ignores_the_delimiter_gives_the_same_files(s3: FaultyS3) -> None:
    s3.upload({"config.json": b"{}", "sub/config.json": b"[]", "sub/deeper/x": b""})
    source = open_source("s3://bucket/m", endpoint=s3.endpoint)
    ordinary = source.list_files()
    assert [file.path for file in ordinary] == ["config.json"]
    s3.deviate(ignores_delimiter=True)
    assert source.list_files() == ordinary


def test_a_server_that_ignores_the_prefix_is_no_s3_server(s3: FaultyS3) -> None:
    s3.objects["elsewhere/config.json"] = b"{}"
    s3.deviate(ignores_prefix=True, ignores_delimiter=True)
    with pytest.raises(NetworkError, match="which is not below it: this is not an S3 server"):
        open_source("s3://bucket/m", endpoint=s3.endpoint).list_files()


@pytest.mark.parametrize("name", BAD.values(), ids=BAD)
def test_a_manifest_that_leads_out_is_damaged(tmp_path: Path, name: str) -> None:
    good = StagedFile.of("a.json", 0, "side", [])
    text = Manifest(source="file:/x", source_digest="sha256:1", files=(good,)).render()
    values = json.loads(text)
    values["files"][0]["path"] = name
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(values, indent=1) + "\n")
    with pytest.raises(ModelError, match="is damaged: the name of a file is refused"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("name", BAD.values(), ids=BAD)
def test_an_index_that_leads_out_is_refused(name: str) -> None:
    shard = f"{name}.safetensors" if name else name
    text = json.dumps({"weight_map": {"tensor": shard}}).encode()
    if shard == "..safetensors" or shard == "...safetensors":
        shard, text = "..", b'{"weight_map": {"tensor": ".."}}'
    with pytest.raises(ModelError, match="which is not a shard in the model's folder"):
        read_index(text, [shard], "index")


@pytest.mark.parametrize("name", BAD.values(), ids=BAD)
def test_a_ledger_that_leads_out_names_nothing(tmp_path: Path, name: str) -> None:
    header = {"schema": "slipway.ledger/2", "files": [[name, 1], ["a.json", 2]]}
    (tmp_path / LEDGER_FILE).write_text(json.dumps(header) + "\n")
    assert named_files(tmp_path) == {"a.json"}


@pytest.mark.parametrize("name", BAD.values(), ids=BAD)
def test_a_plan_that_leads_out_writes_nothing(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "in" / "folder"
    folder.mkdir(parents=True)
    source = tmp_path / "source"
    source.mkdir()
    pinned = pin(open_source(f"file:{source}", endpoint=None))
    with pytest.raises(UnsafeNameError):
        copy(
            pinned,
            [PlannedFile("a.json", "side", b"{}"), PlannedFile(name, "side", b"{}")],
            folder,
            expected={},
            binding=False,
            sums={},
            note=lambda *_: None,
            chunk_bytes=4096,
        )
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    "name", [name for name in BAD.values() if name.isprintable() and len(name) < 200 and name], ids=str
)
def test_a_source_whose_files_lead_out_is_refused(name: str) -> None:
    names = ["config.json", "model.safetensors", f"{name}/x.json"]
    files = [SourceFile(path=path, size_bytes=1, identity="1") for path in names]
    with pytest.raises(UnsafeNameError, match="s3://b/m names the file"):
        select_files(files, "s3://b/m")


@pytest.mark.parametrize("name", [name for name in BAD.values() if name.isprintable()], ids=str)
def test_a_models_description_that_leads_out_is_refused(name: str) -> None:
    text = json.dumps({"flavors": {"transformers": {"model_binary": name}}}).encode()
    with pytest.raises(UnsafeNameError, match="as the folder of its weights"):
        weights_folder(text)


def test_a_list_of_names_is_bounded() -> None:
    assert some_of(["a", "b"]) == "a, b"
    assert some_of([f"n{number}" for number in range(2500)]).endswith("n6, n7 and 2492 more")
    assert some_of(["a\nb", "x" * 300]).isprintable()
