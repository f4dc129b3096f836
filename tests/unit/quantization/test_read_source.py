"""What the size of a model's candidates depends on, read from a folder that others made."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from plain_safetensors import read_plain, write_plain
from random_model import source_of

from tasks.core.errors import ModelError
from tasks.core.model_shape import read_model_config
from tasks.core.spec_kinds import CandidateFormat
from tasks.quantization.folder_sizes import folder_bytes, unpacked_bytes
from tasks.quantization.sizes import file_bytes
from tasks.quantization.source import read_source


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"model": 1}', "[" * 100_000, "9" * 5000])
def test_a_tokenizer_that_is_none_is_named(content: str | None, random_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(random_model, folder)
    tokenizer = folder / "tokenizer.json"
    tokenizer.unlink(missing_ok=True)
    if content is not None:
        tokenizer.write_text(content)
    with pytest.raises(ModelError, match=f"{tokenizer} is missing or not a tokenizer"):
        source_of(folder)


def test_an_engine_that_loads_folders_needs_no_tokenizer_json(random_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(random_model, folder)
    (folder / "tokenizer.json").rename(folder / "tekken.json")
    source = read_source(folder, read_model_config(folder), to_gguf=False)
    assert source.shapes == source_of(random_model).shapes
    assert source.vocabulary_bytes == 0


def test_scales_without_dimensions_and_odd_names_have_a_size(random_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(random_model, folder)
    path = folder / "model.safetensors"
    added = {
        "model.layers.\u00b2.mlp.down_proj.weight": ("F32", (), bytes(4)),
        "scale": ("F32", (), bytes(4)),
    }
    write_plain(path, {**read_plain(path), **added})
    before, source = source_of(random_model), source_of(folder)
    for form in (CandidateFormat.F16, CandidateFormat.Q4_K_M):
        assert 0 < file_bytes(source, form) - file_bytes(before, form) < 1000
    assert folder_bytes(source, CandidateFormat.W8A8) > folder_bytes(before, CandidateFormat.W8A8)
    assert unpacked_bytes(source) == unpacked_bytes(before) + 2 * 2
