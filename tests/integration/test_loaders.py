"""The libraries' loaders, in the environment that is built and locked for them, on every kind of tensor."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from plain_safetensors import write_plain

from blocks.host.load_trial import LoadTrial
from flows.compare_loaders import WORKER, loaders_python
from tasks.core.serving import LIBRARIES
from tasks.core.settings import Settings
from tasks.loading.apply import look_at, reference_digest

pytestmark = pytest.mark.engine


def test_every_loader_gives_every_byte(slipway_home: Path, tmp_path: Path) -> None:
    settings = Settings.load()
    assert loaders_python(settings, install=False) is None
    python = loaders_python(settings, install=True)
    assert python is not None
    assert loaders_python(settings, install=False) == python
    kinds = {"F64": 8, "F32": 4, "I64": 8, "F16": 2, "BF16": 2, "F8_E4M3": 1, "U8": 1}
    for number in (1, 2):
        tensors = {
            f"{number}.{kind}": (kind, (3, 5 * number), os.urandom(15 * number * size))
            for kind, size in kinds.items()
        }
        tensors |= {
            f"{number}.scalar": ("F32", (), os.urandom(4)),
            f"{number}.bool": ("BOOL", (3,), b"\1\0\1"),
        }
        write_plain(tmp_path / f"model-{number}.safetensors", tensors, {"format": "pt"})
    model = look_at(tmp_path)
    trial = LoadTrial(WORKER, python)
    digests = {loader: trial.load(loader, model.files, digest=True).digest for loader in LIBRARIES}
    assert digests == dict.fromkeys(LIBRARIES, reference_digest(model))
