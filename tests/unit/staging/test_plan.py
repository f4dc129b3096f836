"""Which files make up a model, and how its tensors are spread over shards."""

from __future__ import annotations

import json

import pytest
from inline_snapshot import snapshot

from tasks.core.errors import ModelError, SlipwayError
from tasks.core.safetensors import Header, Tensor
from tasks.staging.disk.models import DiskFigures
from tasks.staging.disk.plan import slow_because
from tasks.staging.models import SourceFile
from tasks.staging.plan import (
    check_index,
    read_index,
    read_sums,
    select_files,
    source_digest,
)


def files(*names: str) -> list[SourceFile]:
    return [SourceFile(path=name, size_bytes=1, identity="1") for name in names]


def told(error: pytest.ExceptionInfo[SlipwayError]) -> str:
    return str(error.value)


def test_an_index_rules_and_side_files_come_along() -> None:
    names = ["model-1.safetensors", "model.safetensors.index.json", "consolidated.safetensors"]
    side = ["LICENSE", "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model"]
    found = select_files(files(*names, *side, "modeling.py", ".gitattributes"), "file:/m")
    assert found.index == "model.safetensors.index.json"
    assert found.side == tuple(side)
    assert found.findings == snapshot(("not part of the model, not copied: modeling.py",))


def test_model_safetensors_comes_before_others() -> None:
    found = select_files(files("config.json", "model.safetensors", "other.safetensors"), "file:/m")
    assert (found.index, found.weights) == (None, ("model.safetensors",))
    found = select_files(files("config.json", "a.safetensors", "b.safetensors"), "file:/m")
    assert found.weights == ("a.safetensors", "b.safetensors")


@pytest.mark.parametrize("pickled", ["pytorch_model.bin", "model.pt", "m.pth", "last.ckpt", "w.pkl"])
def test_pickled_weights_are_refused_by_name(pickled: str) -> None:
    with pytest.raises(ModelError) as error:
        select_files(files("config.json", pickled), "file:/m")
    assert pickled in error.value.what
    assert "safetensors" in (error.value.fix or "")


def test_pickles_beside_safetensors_stay_behind() -> None:
    found = select_files(files("config.json", "model.safetensors", "training_args.bin"), "file:/m")
    assert "training_args.bin" not in (*found.weights, *found.side)
    assert found.findings == snapshot(("training_args.bin has pickled weights and was not copied",))


def test_no_weights_and_no_config_are_told_apart() -> None:
    with pytest.raises(ModelError) as error:
        select_files(files("config.json"), "file:/m")
    assert told(error) == snapshot(
        "file:/m contains neither safetensors nor GGUF files (give a folder in the Hugging Face layout)"
    )
    with pytest.raises(ModelError) as error:
        select_files(files("model.safetensors"), "file:/m")
    assert told(error) == snapshot(
        "file:/m contains no config.json (give a folder in the Hugging Face layout)"
    )


def test_a_sources_own_manifest_does_not_become_ours() -> None:
    names = ["config.json", "model.safetensors", "manifest.json", "ledger.jsonl", "new\nline.json"]
    assert select_files(files(*names, "NOTICE.part"), "file:/m").side == ("config.json",)


def test_a_name_for_which_a_file_system_has_no_room_is_refused() -> None:
    """`.part` is added to it while it is written; what stays behind may be called anything."""
    whole = ["config.json", "model.safetensors"]
    longest = "é" * 122 + "x.txt"
    assert len(longest.encode()) == 249
    found = select_files(files(*whole, f"y{longest}", "z" * 300), "s3://m")
    assert f"y{longest}" in found.side
    with pytest.raises(ModelError) as error:
        select_files(files(*whole, f"yy{longest}"), "s3://m")
    assert told(error) == snapshot(
        "s3://m/yyéééééééééééééééééééééééééééééééééééééé… has a name of 251 bytes; at most 250 can be "
        "staged (give it a shorter name)"
    )
    with pytest.raises(ModelError, match="has a name of 305 bytes"):
        select_files(files(*whole, "q" * 300 + ".gguf"), "s3://m")


def test_gguf_comes_along_and_needs_nothing_else() -> None:
    found = select_files(files("config.json", "model.safetensors", "q4.gguf"), "file:/m")
    assert (found.gguf, found.findings) == (("q4.gguf",), ())
    alone = select_files(files("q4.gguf", "README.md"), "file:/m")
    assert (alone.weights, alone.gguf, alone.side) == ((), ("q4.gguf",), ("README.md",))


def test_sums_are_read_as_sha256sum_writes_them() -> None:
    sums = f"{'0a' * 32}  model.safetensors\n{'0B' * 32} *./tokenizer.json\n# of yesterday\nabc  short\n\xff"
    assert read_sums(sums.encode("latin-1")) == {
        "model.safetensors": "0a" * 32,
        "tokenizer.json": "0b" * 32,
    }


def index(weight_map: object) -> bytes:
    return json.dumps({"weight_map": weight_map}).encode()


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"[]",
        b"{}",
        b"[" * 200_000,
        index([]),
        index({}),
        index({"w": 1}),
        index({"w": "../secret.safetensors"}),
        index({"w": "/etc/secret.safetensors"}),
        index({"w": "..\\secret.safetensors"}),
        index({"w": "config.json"}),
        index({"w": "missing.safetensors"}),
    ],
)
def test_a_hostile_index_is_refused_in_one_line(text: bytes) -> None:
    with pytest.raises(ModelError) as error:
        read_index(text, ["a.safetensors", "config.json"], "file:/m/index.json")
    assert error.value.what.startswith("file:/m/index.json ")
    assert "\n" not in told(error)


def header(*tensors: tuple[str, int], start: int = 64, dtype: str = "U8", **metadata: str) -> Header:
    made = []
    for name, size in tensors:
        made.append(Tensor(name, dtype, (size,), start, size))
        start += size
    return Header(tuple(made), metadata)


def test_an_index_must_name_the_shard_that_holds_the_tensor() -> None:
    headers = {"a": header(("w", 1)), "b": header(("v", 1))}
    check_index({"w": "a", "v": "b"}, headers, "index")
    with pytest.raises(ModelError, match="places the tensor 'v' in a, which does not contain it"):
        check_index({"v": "a", "w": "a"}, headers, "index")


def test_a_source_is_named_by_place_and_state() -> None:
    one = source_digest("file:/a", files("x"))
    assert one == source_digest("file:/a", files("x"))
    assert one != source_digest("file:/b", files("x"))
    assert one != source_digest("file:/a", [SourceFile(path="x", size_bytes=1, identity="2")])


def figures(read: float, iops: float) -> DiskFigures:
    return DiskFigures(read_mb_s=read, write_mb_s=1, random_write_iops=iops, direct=True, file_bytes=1)


def test_a_disk_below_a_baseline_is_slow_and_says_why() -> None:
    assert slow_because(figures(7000, 500_000)) == ()
    assert slow_because(figures(6999, 499_999)) == snapshot(
        (
            "sequential read is 6999 MB/s, the baseline 7000: models load more slowly from it",
            "random write is 499999 IOPS, the baseline 500000",
        )
    )
