"""What the size of a model's candidates depends on, read from a folder that others made."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from random_model import source_of

from tasks.core.errors import ModelError


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
