"""GGUF headers: what is read, and that hostile ones cost one line and little else."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inline_snapshot import snapshot
from small_gguf import KEYS, gguf_bytes, key, tensor, text

from tasks.core.errors import ModelError
from tasks.core.gguf import MAX_HEADER_BYTES, GgufHeader, read_gguf
from tasks.core.gguf_model import GgufModel, is_projector, model_of, part_of_split


class Source:
    """Bytes that count how many of them are read."""

    def __init__(self, data: bytes, size: int | None = None) -> None:
        self.data, self.size, self.taken = data, size or len(data), 0

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.size
        self.taken += length
        return self.data[offset : offset + length].ljust(length, b"\0")


def header(data: bytes, size: int | None = None) -> GgufHeader:
    source = Source(data, size)
    return read_gguf(source.read, source.size, "m.gguf")


def head(tensors: int, keys: int, version: int = 3) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", version, tensors, keys)


def model(**changes: object) -> GgufModel:
    keys = {**KEYS, **{name.replace("__", "."): value for name, value in changes.items()}}
    return model_of(
        {"m.gguf": header(gguf_bytes({k: v for k, v in keys.items() if v is not None}))}, "m.gguf"
    )


def test_keys_lists_and_tensors() -> None:
    found = header(gguf_bytes({**KEYS, "x.bool": True, "x.float": 0.5, "x.list": [1, -2]}))
    assert found.text("general.architecture") == "llama"
    assert found.number("llama.block_count") == 2
    assert (found.values["x.bool"], found.values["x.float"], found.number("x.bool")) == (True, 0.5, None)
    assert found.numbers == {"x.list": (1, -2)}
    assert found.lengths == {"tokenizer.ggml.tokens": 4, "x.list": 2}
    assert [(one.name, one.kind, one.shape, one.size_bytes) for one in found.tensors] == [
        ("token_embd.weight", "q4_k", (256, 4), 576),
        ("output_norm.weight", "f32", (64,), 256),
    ]


def test_a_vocabulary_larger_than_the_window_is_skipped() -> None:
    words = ["x" * (number % 40) for number in range(100_000)]
    found = header(gguf_bytes({**KEYS, "tokenizer.ggml.merges": words, "after": 7}))
    assert (found.lengths["tokenizer.ggml.merges"], found.number("after")) == (100_000, 7)


BIG = 2**63
HOSTILE = {
    "empty": b"",
    "magic alone": b"GGUF",
    "GGML": b"GGML" + gguf_bytes()[4:],
    "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32,
    "version 1": head(0, 0, 1),
    "version 4": head(0, 0, 4),
    "big-endian": struct.pack(">4sIQQ", b"GGUF", 3, 0, 0),
    "many tensors": head(BIG, 0),
    "many keys": head(0, BIG),
    "keys that are not there": head(0, 65_000),
    "key longer than the file": head(0, 1) + struct.pack("<Q", BIG),
    "text longer than the file": head(0, 1) + text("k") + struct.pack("<IQ", 8, 4_000_000),
    "huge text": head(0, 1) + text("k") + struct.pack("<IQ", 8, BIG),
    "unknown type": head(0, 1) + text("k") + struct.pack("<II", 13, 0),
    "list of lists": head(0, 1) + text("k") + struct.pack("<IIQ", 9, 9, 1) + bytes(100),
    "list of nothing known": head(0, 1) + text("k") + struct.pack("<IIQ", 9, 77, 1) + bytes(100),
    "huge list": head(0, 1) + text("k") + struct.pack("<IIQ", 9, 10, BIG),
    "huge list of texts": head(0, 1) + text("k") + struct.pack("<IIQ", 9, 8, 2**61) + bytes(100),
    "text in a list past the end": head(0, 1) + text("k") + struct.pack("<IIQQ", 9, 8, 1, BIG),
    "texts that wind around": head(0, 1) + text("k") + struct.pack("<IIQQQ", 9, 8, 2, 2**64 - 8, 2**64 - 8),
    "key twice": head(0, 2) + key("k", 1) + key("k", 2),
    "NaN": head(0, 1) + key("k", float("nan")),
    "infinite": head(0, 1) + key("k", float("inf")),
    "alignment of 0": head(0, 1) + key("general.alignment", 0),
    "alignment of 24": head(0, 1) + key("general.alignment", 24),
    "alignment as text": head(0, 1) + key("general.alignment", "x"),
    "tensor twice": head(2, 0) + tensor("t", (32,), 0, 0) + tensor("t", (32,), 0, 128) + bytes(400),
    "five dimensions": head(1, 0) + tensor("t", (1, 1, 1, 1, 1), 0, 0) + bytes(400),
    "huge tensor": head(1, 0) + tensor("t", (2**40, 2**40), 0, 0) + bytes(400),
    "unknown kind": head(1, 0) + tensor("t", (32,), 4, 0) + bytes(400),
    "rows that are no blocks": head(1, 0) + tensor("t", (100,), 12, 0) + bytes(400),
    "tensor elsewhere": head(1, 0) + tensor("t", (32,), 0, 64) + bytes(400),
    "overlapping tensors": head(2, 0) + tensor("a", (32,), 0, 0) + tensor("b", (32,), 0, 0) + bytes(400),
    "cut off": gguf_bytes()[:-1],
    "cut off in its keys": gguf_bytes()[:200],
    "terminal escapes": head(0, 2) + key("\x1b[2J", 1) + key("\x1b[2J", 1),
    "not UTF-8": head(0, 2) + (text(b"\xff\xfe") + struct.pack("<II", 4, 1)) * 2,
}  # fmt: skip


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_header_is_refused_in_one_line_and_hardly_read(data: bytes) -> None:
    source = Source(data)
    with pytest.raises(ModelError, match=r"m\.gguf") as error:
        read_gguf(source.read, source.size, "m.gguf")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300
    assert error.value.fix
    assert source.taken <= 2 * len(data) + 48


@pytest.mark.parametrize("kind", [8, 10])
def test_a_list_that_fills_a_huge_file_is_refused_unread(kind: int) -> None:
    """The file claims a terabyte, and every count in it fits into that."""
    source = Source(head(0, 1) + text("k") + struct.pack("<IIQ", 9, kind, 2**36), 2**40)
    with pytest.raises(ModelError, match="more than the file holds"):
        read_gguf(source.read, source.size, "m.gguf")
    assert source.taken <= 2 << 20


def test_a_header_without_an_end_is_given_up() -> None:
    source = Source(head(0, 1) + text("k") + struct.pack("<IIQ", 9, 8, 5_000_000), 2**40)
    with pytest.raises(ModelError, match="5000000 texts"):
        read_gguf(source.read, source.size, "m.gguf")
    long = struct.pack("<Q", MAX_HEADER_BYTES)
    with pytest.raises(ModelError, match="header is larger than"):
        header(head(0, 1) + text("k") + struct.pack("<IIQ", 9, 8, 3) + long, 2**40)


@given(st.binary(max_size=40), st.integers(0, len(gguf_bytes())))
def test_no_damage_raises_anything_else(damage: bytes, at: int) -> None:
    whole = gguf_bytes()
    try:
        model_of({"m.gguf": header(whole[:at] + damage + whole[at + len(damage) :])}, "m.gguf")
    except ModelError as error:
        assert str(error).isprintable()


def test_what_a_model_says_of_itself() -> None:
    found = model()
    assert found.describe() == snapshot(
        "llama, 2 layers, hidden 64, context 512, q4_k_m (1 q4_k, 1 f32 tensors), tokenizer gpt2, a chat template"
    )
    assert found.shape.model_dump(exclude_none=True) == snapshot(
        {
            "architecture": "llama",
            "family": "llama",
            "layers": 2,
            "hidden": 64,
            "heads": 4,
            "kv_heads": 2,
            "vocabulary": 4,
            "max_context": 512,
            "kept": ({"layers": 2, "token_bytes": 256},),
            "stateful": False,
            "unread": (),
        }
    )
    assert found.shape.kv_bytes_per_token == 2 * 2 * 2 * 16 * 2
    assert found.chat_template == "{{ messages }}"


@pytest.mark.parametrize(
    ("changes", "kv_bytes"),
    [
        ({"llama.attention.key_length": 32}, 2 * 2 * 2 * 32 * 2),
        ({"llama.attention.head_count_kv": [2, 0]}, 2 * 2 * 1 * 16 * 2),
        ({"llama.attention.head_count_kv": None}, 2 * 2 * 4 * 16 * 2),
        ({"llama.attention.kv_lora_rank": 512, "llama.rope.dimension_count": 64}, 2 * 576 * 2),
        ({"llama.attention.sliding_window": 128}, 2 * 2 * 2 * 16 * 2),
        ({"llama.attention.sliding_window": 128, "llama.attention.sliding_window_pattern": 2}, 2 * 2 * 16 * 2),
        ({"llama.attention.sliding_window": 128, "llama.attention.sliding_window_pattern": [1, 0]}, 2 * 2 * 16 * 2),
        ({"llama.attention.sliding_window": 0, "llama.attention.sliding_window_pattern": [1, 0]}, 2 * 2 * 2 * 16 * 2),
    ],
)  # fmt: skip
def test_keys_and_values_of_a_token(changes: dict[str, object], kv_bytes: int) -> None:
    assert model(**changes).shape.kv_bytes_per_token == kv_bytes


def test_gemma_3_looks_at_the_whole_context_in_every_sixth_layer() -> None:
    """gemma-3-270m: 18 layers, one key-value head of 256."""
    sizes = {"block_count": 18, "embedding_length": 640, "attention.head_count": 4, "context_length": 32768}
    sizes |= {"attention.head_count_kv": 1, "attention.key_length": 256, "attention.sliding_window": 512}
    keys = {"general.architecture": "gemma3", **{f"gemma3.{name}": size for name, size in sizes.items()}}
    found = model_of({"m.gguf": header(gguf_bytes(keys))}, "m.gguf")
    assert found.shape.kv_bytes_per_token == 3 * 2 * 256 * 2
    assert found.shape.kv_bytes(32768) == 2 * 256 * 2 * (3 * 32768 + 15 * 512)


@pytest.mark.parametrize(
    ("file_type", "kind", "stored_as"),
    [
        (15, 12, "q4_k_m"),
        (14, 12, "q4_k_s"),
        (None, 12, "q4_k"),
        (1, 12, "q4_k"),  # claims f16
        (999, 12, "q4_k"),
        (1, 1, "f16"),
        (0, 0, "f32"),
        (32, 30, "bf16"),
        (15, 1, "f16"),  # claims q4_k_m
    ],
)
def test_the_name_of_a_quantization(file_type: int | None, kind: int, stored_as: str) -> None:
    keys = {
        name: value for name, value in {**KEYS, "general.file_type": file_type}.items() if value is not None
    }
    found = model_of({"m.gguf": header(gguf_bytes(keys, {"a": ((256, 4), kind), "b": ((64,), 0)}))}, "m.gguf")
    assert found.stored_as == stored_as


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"general.architecture": None}, "does not name its architecture"),
        ({"general.type": "adapter"}, "is a LoRA adapter"),
        ({"general.architecture": "clip"}, "is a vision projector"),
        ({"general.type": "imatrix"}, "is an importance matrix"),
        ({"llama.block_count": None}, "'llama.block_count' is missing"),
        ({"llama.block_count": 2**31}, "2147483648 layers"),
        ({"llama.context_length": 0}, "'llama.context_length' is 0"),
        ({"llama.embedding_length": "x"}, "'llama.embedding_length' is missing"),
        ({"llama.attention.head_count": [-4, -4]}, "heads of -4"),
        ({"llama.embedding_length": 2}, "head_dim of 0"),
        ({"split.count": 2}, "part 1 of 2"),
        ({"split.tensors.count": 9}, "has 2 tensors, but says that it has 9"),
    ],
)
def test_what_is_not_a_whole_model(changes: dict[str, object], why: str) -> None:
    with pytest.raises(ModelError, match=why):
        model(**changes)


def test_parts_are_one_model_in_their_order(tmp_path: Path) -> None:
    def parts(*numbers: int, tensors: int = 2) -> dict[str, GgufHeader]:
        found = {}
        for number in numbers:
            split = {"split.no": number, "split.count": 2, "split.tensors.count": tensors}
            keys = {**KEYS, **split} if number == 0 else split
            found[f"p{number}"] = header(gguf_bytes(keys, {f"t{number}": ((256, 4), 12)}))
        return found

    assert model_of(parts(0, 1), "m").kinds == {"q4_k": 2}
    for wrong, why in [
        (parts(1, 0), "p1 says that it is part 2 of 2, not 1 of 2"),
        (parts(0, 1, tensors=3), "has 2 tensors, but says that it has 3"),
        (
            {**parts(0), "p1": header(gguf_bytes({"split.no": 1, "split.count": 2}, {"t0": ((256, 4), 12)}))},
            "repeats",
        ),
    ]:
        with pytest.raises(ModelError, match=why):
            model_of(wrong, "m")
    with pytest.raises(ModelError, match="contains no tensors"):
        model_of({"m": header(gguf_bytes(KEYS, {}))}, "m")


def test_names_of_parts_and_projectors() -> None:
    assert part_of_split("m-Q4_K_M-00002-of-00003.gguf") == ("m-Q4_K_M", 2, 3)
    assert part_of_split("m-Q4_K_M.gguf") is None
    assert [is_projector(name) for name in ("mmproj-f16.gguf", "MMPROJ.gguf", "m-mmproj.gguf")] == [
        True,
        True,
        False,
    ]
