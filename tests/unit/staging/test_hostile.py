"""Models made to do harm: each is refused with one line that says what is wrong, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blocks.storage.model_source import FolderSource
from tasks.core.errors import ModelError
from tasks.staging.apply import plan_copy
from tasks.staging.source import pin

HONEST: dict[str, Any] = {
    "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
    "b": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [16, 24]},
}


def write(folder: Path, header: object, *, data: int = 24, length: int | None = None) -> None:
    text = json.dumps(header).encode()
    announced = len(text) if length is None else length
    (folder / "model.safetensors").write_bytes(
        (announced % (1 << 64)).to_bytes(8, "little") + text + bytes(data)
    )


def changed(**changes: object) -> dict[str, Any]:
    return {**HONEST, "b": {**HONEST["b"], **changes}}


def link_out(folder: Path) -> None:
    secret = folder.parent / "secret.safetensors"
    (folder / "model.safetensors").rename(secret)
    (folder / "model.safetensors").symlink_to(secret)


def index(weight_map: object) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": weight_map})
    )


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda folder: write(folder, HONEST, length=10_000), "its header claims 10000 bytes, the file has"),
        (lambda folder: write(folder, HONEST, length=-1), "its header claims 18446744073709551615 bytes"),
        (lambda folder: write(folder, changed(data_offsets=[8, 16])), "'b' overlaps the one before it"),
        (lambda folder: write(folder, changed(data_offsets=[20, 28]), data=28), "'b' leaves a gap before it"),
        (lambda folder: write(folder, changed(data_offsets=[24, 16])), "are not a start and an end"),
        (lambda folder: write(folder, changed(data_offsets=[-8, 16])), "are not a start and an end"),
        (lambda folder: write(folder, changed(shape=[-2, -2])), "its shape is not a list of sizes"),
        (lambda folder: write(folder, changed(shape=[1 << 62, 1 << 62])), "does not fit into 8 bytes"),
        (lambda folder: write(folder, changed(dtype="F64")), "does not fit into 8 bytes"),
        (lambda folder: write(folder, changed(dtype="PICKLE")), "unknown element type 'PICKLE'"),
        (lambda folder: write(folder, HONEST, data=23), "it is truncated"),
        (lambda folder: write(folder, HONEST, data=25), "1 bytes after its last tensor"),
        (link_out, "is a link that leads out of the model's folder"),
        (index({"a": "/etc/model.safetensors"}), "'/etc/model.safetensors', which is not a shard in"),
        (index({"a": "../model.safetensors"}), "'../model.safetensors', which is not a shard in"),
        (
            index({"a": "model.safetensors", "b": "gone.safetensors"}),
            "names the shard 'gone.safetensors', which is missing",
        ),
        (index({"c": "model.safetensors"}), "places the tensor 'c' in model.safetensors"),
        (lambda folder: (folder / "x.gguf").write_bytes(b"GGML"), "x.gguf is not a GGUF file"),
        (lambda folder: (folder / "x.gguf").touch(), "x.gguf is not a GGUF file"),
    ],
)
def test_a_model_made_to_do_harm_is_refused_in_one_line(
    tmp_path: Path, harm: Callable[[Path], object], told: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    write(folder, HONEST)
    plan_copy(pin(FolderSource(folder)), "auto", convertible=False)
    harm(folder)
    with pytest.raises(ModelError) as error:
        plan_copy(pin(FolderSource(folder)), "auto", convertible=False)
    assert told in error.value.what
    assert "\n" not in str(error.value)
