"""An engine that finds no values for some weights does not serve random ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from random_model import rewrite_model, write_random_model

from blocks.engine.bench import EngineBench
from tasks.core.errors import EngineDiedError
from tasks.core.serving import ServingConfig
from tasks.engines.transformers import Transformers

NORM = "model.layers.{}.self_attn.q_norm.weight"


def test_transformers_serve_names_what_is_missing(transformers_python: Path, tmp_path: Path) -> None:
    model = write_random_model(tmp_path / "model")
    rewrite_model(model, tensors={NORM.format(0): None, NORM.format(1): None})
    bench = EngineBench(engine=Transformers(), python=transformers_python)
    config = ServingConfig(served_name="tiny", batch=1, context=64, threads=1)
    with (
        pytest.raises(EngineDiedError) as raised,
        bench.serve(model, config, tmp_path / "log"),
    ):
        pass
    told = f"the model is not whole: its files have no {NORM.format(0)} and 1 more"
    assert raised.value.what == f"the engine died while starting (exit status 1): {told}"
