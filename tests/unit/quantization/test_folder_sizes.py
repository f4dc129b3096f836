"""Sizes of candidates in folders, before they are made, and shapes that a format cannot take."""

from __future__ import annotations

import pytest

from tasks.core.model_shape import ModelShape
from tasks.core.spec_kinds import CandidateFormat
from tasks.quantization.folder_sizes import folder_bytes, refuse_shapes, unpacked_bytes
from tasks.quantization.sizes import Source

BF16, W8A8, W4A16, FP8 = (CandidateFormat(name) for name in ("bf16", "w8a8", "w4a16", "fp8"))
LINEAR = "model.layers.0.mlp.up_proj.weight"
BESIDE = 1000
SHAPE = ModelShape(
    architecture="LlamaForCausalLM", family="llama", layers=1, hidden=1024, heads=8, kv_heads=8,
    vocabulary=4096, max_context=4096,
)  # fmt: skip


def source(**shapes: tuple[int, ...]) -> Source:
    return Source(SHAPE, {name.replace("__", "."): dims for name, dims in shapes.items()}, 0, BESIDE)


BIG = source(model__embed_tokens__weight=(4096, 1024), lm_head__weight=(4096, 1024), **{LINEAR: (2048, 1024)})
KEPT = 2 * 4096 * 1024 * 2
VALUES = 2048 * 1024


@pytest.mark.parametrize(
    ("form", "compressed"),
    [
        (BF16, VALUES * 2),
        (W8A8, VALUES + 2048 * 2),
        (FP8, VALUES + 2048 * 2),
        (W4A16, VALUES // 2 + 2048 * 1024 // 128 * 2 + 16),
    ],
    ids=str,
)
def test_linear_layers_alone_are_compressed(form: CandidateFormat, compressed: int) -> None:
    rest = folder_bytes(BIG, form) - KEPT - compressed
    assert BESIDE < rest < BESIDE + 5000  # headers and configuration


def test_an_engine_that_unpacks_holds_16_bits_whatever_was_stored() -> None:
    assert unpacked_bytes(BIG) == KEPT + VALUES * 2


def test_vectors_are_kept() -> None:
    norm = source(model__norm__weight=(1024,))
    assert folder_bytes(norm, W4A16) == folder_bytes(norm, BF16)


def test_rows_that_do_not_divide_into_groups_are_refused_before() -> None:
    ragged = source(**{LINEAR: (256, 192)})
    assert refuse_shapes(ragged, W4A16) == (
        f"not made: w4a16 takes rows in groups of 128 values, but those of {LINEAR} do not divide evenly"
    )
    assert refuse_shapes(ragged, W8A8) is None
    assert refuse_shapes(BIG, W4A16) is None
    assert refuse_shapes(source(lm_head__weight=(256, 192)), W4A16) is None  # it is not compressed
