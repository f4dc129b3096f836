"""Which files make up a model, and how its tensors are spread over shards."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inline_snapshot import snapshot

from tasks.core.errors import ModelError, SlipwayError, WrongUseError
from tasks.core.safetensors import ALIGNMENT, Header, Tensor
from tasks.staging.models import DiskFigures, SourceFile
from tasks.staging.plan import (
    SHARD_BYTES,
    Range,
    balance,
    check_index,
    lay_out,
    merge_ranges,
    read_index,
    select_files,
    shard_count,
    slow_because,
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
    assert found.findings == snapshot(("not part of the model, left behind: modeling.py",))


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
    assert found.findings == snapshot(("training_args.bin holds pickled weights and was left behind",))


def test_no_weights_and_no_config_are_told_apart() -> None:
    with pytest.raises(ModelError) as error:
        select_files(files("config.json"), "file:/m")
    assert told(error) == snapshot("file:/m holds no safetensors (give a folder in the Hugging Face layout)")
    with pytest.raises(ModelError) as error:
        select_files(files("model.safetensors"), "file:/m")
    assert told(error) == snapshot("file:/m holds no config.json (give a folder in the Hugging Face layout)")


def test_a_sources_own_manifest_does_not_become_ours() -> None:
    names = ["config.json", "model.safetensors", "manifest.json", "progress.json", "new\nline.json"]
    assert select_files(files(*names), "file:/m").side == ("config.json",)


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
    with pytest.raises(ModelError, match="looks for the tensor 'v' in a, which does not hold it"):
        check_index({"v": "a", "w": "a"}, headers, "index")


def test_a_tensor_in_two_files_is_refused() -> None:
    with pytest.raises(ModelError, match="the tensor 'w' is in a and again in b"):
        lay_out({"a": header(("w", 1)), "b": header(("w", 2))}, "auto")


def test_shards_hold_whole_aligned_tensors_and_an_index_names_them() -> None:
    headers = {"a": header(("w", 10), ("x", 20), format="pt", by="me"), "b": header(("v", 30), format="pt")}
    *shards, named = lay_out(headers, 2)
    assert [shard.path for shard in shards] == snapshot(
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    )
    assert all(len(shard.head) % ALIGNMENT == 0 for shard in shards)
    assert [shard.ranges for shard in shards] == [(Range("b", 64, 30),), (Range("a", 64, 30),)]
    assert b'"__metadata__":{"format":"pt"}' in shards[0].head
    assert json.loads(named.head) == snapshot(
        {
            "metadata": {"total_size": 60},
            "weight_map": {
                "v": "model-00001-of-00002.safetensors",
                "w": "model-00002-of-00002.safetensors",
                "x": "model-00002-of-00002.safetensors",
            },
        }
    )


def test_wide_types_come_first_so_that_each_tensor_is_aligned_to_its_type() -> None:
    narrow = header(("n", 3))
    wide = Tensor("f", "F32", (2,), 67, 8)
    shard, _ = lay_out({"a": Header((*narrow.tensors, wide), {})}, 1)
    assert shard.ranges == (Range("a", 67, 8), Range("a", 64, 3))


def test_neighbours_are_read_as_one() -> None:
    first, second, empty = header(("a", 4), ("b", 5), ("c", 0)).tensors
    assert merge_ranges([("f", first), ("f", second), ("f", empty)]) == (Range("f", 64, 9),)
    assert merge_ranges([("f", second), ("f", first)]) == (Range("f", 68, 5), Range("f", 64, 4))
    assert merge_ranges([("f", first), ("g", second)]) == (Range("f", 64, 4), Range("g", 68, 5))
    assert merge_ranges([("f", empty)]) == ()


@pytest.mark.parametrize(
    ("sizes", "wanted", "count"),
    [
        ([1], "auto", 1),
        ([SHARD_BYTES] * 7, "auto", 7),
        ([SHARD_BYTES // 4] * 9, "auto", 2),
        ([50 * SHARD_BYTES], "auto", 1),
        ([1, 1, 1], 3, 3),
    ],
)
def test_auto_makes_one_shard_for_each_two_gib(sizes: list[int], wanted: object, count: int) -> None:
    assert shard_count(sizes, wanted) == count  # type: ignore[arg-type]


def test_more_shards_than_tensors_is_wrong_use() -> None:
    with pytest.raises(WrongUseError) as error:
        shard_count([1, 1], 3)
    assert told(error) == snapshot(
        "3 shards are not possible: the model has 2 tensors, which are never split (ask for fewer shards, or auto)"
    )
    with pytest.raises(ModelError, match="holds no tensors"):
        shard_count([], "auto")


def spread(sizes: list[int], groups: Iterable[list[int]]) -> list[int]:
    return [sum(sizes[item] for item in group) for group in groups]


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 1000), min_size=1, max_size=40), data=st.data())
def test_balance_uses_every_tensor_once_and_no_shard_is_empty_or_lopsided(
    sizes: list[int], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, len(sizes)))
    groups = balance(sizes, count)
    assert sorted(item for group in groups for item in group) == list(range(len(sizes)))
    assert all(group and group == sorted(group) for group in groups)
    heaviest, lightest = max(spread(sizes, groups)), min(spread(sizes, groups))
    assert heaviest - lightest <= max(sizes)


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
            "sequential read is 6999 MB/s, the baseline 7000: models load slower from here",
            "random write is 499999 IOPS, the baseline 500000",
        )
    )
