"""How tensors are spread over shards, and shards over chunks of the source."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inline_snapshot import snapshot

from tasks.core.errors import ModelError, WrongUseError
from tasks.core.safetensors import ALIGNMENT, Header, Tensor
from tasks.staging.layout import (
    LEAST_SHARD_BYTES,
    SHARD_BYTES,
    Chunk,
    PlannedFile,
    Range,
    chunks_of,
    cuts,
    lay_out,
    merge_ranges,
    shard_count,
)


def header(*tensors: tuple[str, int], start: int = 64, dtype: str = "U8", **metadata: str) -> Header:
    made = []
    for name, size in tensors:
        made.append(Tensor(name, dtype, (size,), start, size))
        start += size
    return Header(tuple(made), metadata)


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
    assert [shard.ranges for shard in shards] == [(Range("a", 64, 30),), (Range("b", 64, 30),)]
    assert b'"__metadata__":{"format":"pt"}' in shards[0].head
    assert json.loads(named.head) == snapshot(
        {
            "metadata": {"total_size": 60},
            "weight_map": {
                "v": "model-00002-of-00002.safetensors",
                "w": "model-00001-of-00002.safetensors",
                "x": "model-00001-of-00002.safetensors",
            },
        }
    )


def test_wide_types_come_first_so_that_each_tensor_is_aligned_to_its_type() -> None:
    narrow = header(("n", 3))
    wide = Tensor("f", "F32", (2,), 67, 8)
    shard, _ = lay_out({"a": Header((*narrow.tensors, wide), {})}, 1)
    assert shard.ranges == (Range("a", 67, 8), Range("a", 64, 3))


def test_the_sources_order_stays_where_it_aligns_every_tensor() -> None:
    wide = Tensor("f", "F32", (2,), 68, 8)
    shard, _ = lay_out({"a": Header((*header(("n", 4)).tensors, wide), {})}, 1)
    assert shard.ranges == (Range("a", 64, 12),)


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
    assert str(error.value) == snapshot(
        "3 shards are not possible: the model has 2 tensors, which are never split (ask for fewer shards, or auto)"
    )
    with pytest.raises(ModelError, match="contains no tensors"):
        shard_count([], "auto")


@pytest.mark.parametrize(
    ("shards", "ranks", "count"),
    [
        (7, 1, 7),
        (7, 2, 8),
        (7, 4, 8),
        (7, 8, 8),
        (1, 4, 4),
        (1, 8, 4),
        (0.5, 8, 2),
        (0.2, 8, 1),
        (100, 8, 96),
    ],
)
def test_auto_is_a_multiple_of_the_ranks_or_a_divisor_where_shards_would_be_tiny(
    shards: float, ranks: int, count: int
) -> None:
    sizes = [int(shards * SHARD_BYTES) // 1000] * 1000
    assert shard_count([*sizes, int(shards * SHARD_BYTES) - sum(sizes)], "auto", ranks) == count


@settings(deadline=None)
@given(total=st.integers(1, 1 << 43), ranks=st.sampled_from([1, 2, 4, 8, 16]))
def test_automatic_shards_are_neither_tiny_nor_huge(total: int, ranks: int) -> None:
    count = shard_count([total, *[0] * 5000], "auto", ranks)
    assert count % ranks == 0 or ranks % count == 0
    assert count == 1 or LEAST_SHARD_BYTES <= total / count <= 2 * SHARD_BYTES


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 1000), min_size=1, max_size=40), data=st.data())
def test_cuts_leave_no_shard_empty_or_lopsided(sizes: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(sizes)))
    found = cuts(sizes, count)
    assert (found[0], found[-1], len(found)) == (0, len(sizes), count + 1)
    assert all(first < end for first, end in itertools.pairwise(found))
    stretches = [sum(sizes[first:end]) for first, end in itertools.pairwise(found)]
    assert all(abs(stretch - sum(sizes) / count) <= max(sizes) + 1e-6 for stretch in stretches)


def test_a_file_is_cut_into_chunks_of_its_head_and_ranges() -> None:
    file = PlannedFile("w", "weights", b"head", (Range("a", 10, 5), Range("b", 0, 8)))
    assert list(chunks_of(file, 8)) == [
        Chunk(0, 0, 8, b"head", (Range("a", 10, 4),)),
        Chunk(1, 8, 8, b"", (Range("a", 14, 1), Range("b", 0, 7))),
        Chunk(2, 16, 1, b"", (Range("b", 7, 1),)),
    ]
    assert list(chunks_of(PlannedFile("e", "side", b""), 8)) == []


@given(
    head=st.binary(max_size=20),
    sizes=st.lists(st.integers(1, 30), max_size=8),
    chunk_bytes=st.integers(1, 16),
)
def test_chunks_together_are_the_file(head: bytes, sizes: list[int], chunk_bytes: int) -> None:
    source = bytes(range(256))
    ranges = tuple(Range("a", 3 * number, size) for number, size in enumerate(sizes))
    whole = head + b"".join(source[item.start : item.start + item.size_bytes] for item in ranges)
    pieces = [
        chunk.head + b"".join(source[item.start : item.start + item.size_bytes] for item in chunk.ranges)
        for chunk in chunks_of(PlannedFile("w", "weights", head, ranges), chunk_bytes)
    ]
    assert b"".join(pieces) == whole
    assert all(len(piece) == chunk_bytes for piece in pieces[:-1])
