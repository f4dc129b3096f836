"""Headers come from strangers: each wrong one is one clear line, and none is believed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.core.errors import ModelError
from tasks.core.safetensors import ALIGNMENT, BITS, Tensor, header_length, parse_header, render_header

GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def parse(header: Any, data_bytes: int = 8) -> Any:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return parse_header(text, 8 + len(text) + data_bytes, "m.safetensors")


def with_tensor(**changes: Any) -> dict[str, Any]:
    return {"w": {**GOOD, **changes}}


HOSTILE: dict[str, tuple[Any, int, str]] = {
    "not json": (b"{]", 8, "its header is not JSON"),
    "not utf-8": (b'{"\xff": 1}', 8, "its header is not JSON"),
    "nested without end": (b"[" * 200_000, 8, "its header is not JSON"),
    "a number of a million digits": (b'{"w": ' + b"9" * 1_000_000 + b"}", 8, "its header is not JSON"),
    "a list": ([], 0, "its header is not a JSON object"),
    "a name twice": (b'{"w": {}, "w": {}}', 8, "a name occurs twice"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, 0, "does not map text to text"),
    "metadata no map": ({"__metadata__": []}, 0, "does not map text to text"),
    "half a surrogate": ({"\ud800": GOOD}, 8, "its name is not valid text"),
    "no map for a tensor": ({"w": 3}, 8, "exactly dtype, shape and data_offsets"),
    "a key too few": ({"w": {"dtype": "F32", "shape": [2]}}, 8, "exactly dtype, shape and data_offsets"),
    "unknown type": (with_tensor(dtype="F33"), 8, "unknown element type 'F33'"),
    "type that is no text": (with_tensor(dtype=["F32"]), 8, "unknown element type"),
    "negative size": (with_tensor(shape=[-2]), 8, "its shape is not a list of sizes"),
    "size that is true": (with_tensor(shape=[True, 2]), 8, "its shape is not a list of sizes"),
    "size with a fraction": (with_tensor(shape=[2.0]), 8, "its shape is not a list of sizes"),
    "too many dimensions": (with_tensor(shape=[1] * 33 + [2]), 8, "its shape is not a list of sizes"),
    "huge size": (with_tensor(shape=[1 << 63]), 8, "its shape is not a list of sizes"),
    "negative offset": (with_tensor(data_offsets=[-8, 0]), 8, "are not a start and an end"),
    "offsets reversed": (with_tensor(data_offsets=[8, 0]), 8, "are not a start and an end"),
    "three offsets": (with_tensor(data_offsets=[0, 4, 8]), 8, "are not a start and an end"),
    "shape that does not fit": (with_tensor(shape=[3]), 8, "F32 of shape [3] does not fit into 8 bytes"),
    "half a byte": (
        {"w": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}},
        2,
        "F4 of shape [3] does not fit into 2 bytes",
    ),
    "overlap": (
        {"v": GOOD, "w": {**GOOD, "data_offsets": [4, 12]}},
        12,
        "tensor 'w' overlaps the one before it",
    ),
    "the same bytes twice": ({"v": GOOD, "w": GOOD}, 8, "tensor 'w' overlaps the one before it"),
    "gap": ({"v": GOOD, "w": {**GOOD, "data_offsets": [12, 20]}}, 20, "tensor 'w' leaves a gap before it"),
    "beyond the end": (with_tensor(shape=[1 << 40], data_offsets=[0, 1 << 42]), 8, "it is truncated"),
    "one byte short": (with_tensor(), 7, "it is truncated"),
    "one byte too many": (with_tensor(), 9, "1 bytes after its last tensor are unused"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_is_refused_in_one_line(case: str) -> None:
    header, data_bytes, expected = HOSTILE[case]
    with pytest.raises(ModelError) as caught:
        parse(header, data_bytes)
    assert expected in caught.value.what
    assert caught.value.what.startswith("m.safetensors is not a valid safetensors file: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("first", "file_bytes", "expected"),
    [
        (b"", 0, "it has 0 bytes, too few for a header"),
        (b"\x01\x00", 2, "it has 2 bytes, too few for a header"),
        ((1000).to_bytes(8, "little"), 100, "its header claims 1000 bytes, the file has 100"),
        ((1 << 63).to_bytes(8, "little"), 100, "at most 100000000 are allowed"),
    ],
)
def test_a_header_longer_than_its_file_is_refused(first: bytes, file_bytes: int, expected: str) -> None:
    with pytest.raises(ModelError, match=r"m\.safetensors") as caught:
        header_length(first, file_bytes, "m.safetensors")
    assert expected in caught.value.what


def test_tensors_come_in_the_order_of_their_bytes() -> None:
    late = {**GOOD, "data_offsets": [8, 16]}
    header = parse({"__metadata__": {"format": "pt"}, "late": late, "early": GOOD}, 16)
    assert [tensor.name for tensor in header.tensors] == ["early", "late"]
    assert header.metadata == {"format": "pt"}
    assert header.tensors[0].start == header.tensors[1].start - 8


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(
    lambda name: name != "__metadata__"
)
shapes = st.lists(st.integers(0, 5), max_size=4)


@settings(deadline=None)
@given(
    tensors=st.dictionaries(names, st.tuples(st.sampled_from(sorted(BITS)), shapes), max_size=8),
    metadata=st.dictionaries(names, names, max_size=2),
)
def test_what_is_rendered_is_read_again(
    tensors: dict[str, tuple[str, list[int]]], metadata: dict[str, str]
) -> None:
    made = []
    for name, (dtype, shape) in tensors.items():
        whole = [*shape, 8]  # whole bytes for element types of 4 and 6 bits
        values = 1
        for size in whole:
            values *= size
        made.append(Tensor(name, dtype, tuple(whole), 0, values * BITS[dtype] // 8))
    head = render_header(made, metadata)
    assert len(head) % ALIGNMENT == 0
    total = len(head) + sum(tensor.size_bytes for tensor in made)
    length = header_length(head[:8], total, "x")
    again = parse_header(head[8:], total, "x")
    assert length == len(head) - 8
    assert again.metadata == metadata
    key = [(tensor.name, tensor.dtype, tensor.shape, tensor.size_bytes) for tensor in made]
    found = [(tensor.name, tensor.dtype, tensor.shape, tensor.size_bytes) for tensor in again.tensors]
    assert sorted(found) == sorted(key)
    assert all(tensor.start >= len(head) for tensor in again.tensors)
