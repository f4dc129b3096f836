"""Every format: made, as large as predicted, as near to the source as rounding allows, loaded, and generating."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from inline_snapshot import snapshot
from random_model import FFN, read_floats, rewrite_model, source_of, write_random_model

from blocks.candidates.candidate_worker import compare_gguf, make_gguf
from blocks.engine.api import EngineApi
from blocks.engine.process import serve
from tasks.core.serving import ServingConfig
from tasks.core.spec_kinds import CandidateFormat
from tasks.engines.llama_cpp import LlamaCpp
from tasks.quantization.quality import ROUNDING, reject_weights, worst_weight
from tasks.quantization.recipe import RECIPES
from tasks.quantization.sizes import file_bytes

pytestmark = pytest.mark.engine

F16 = CandidateFormat.F16
GGUF = RECIPES["gguf-file"]


def predicted(model: Path, form: CandidateFormat) -> int:
    return file_bytes(source_of(model), form)


@pytest.fixture(scope="module")
def tiny(repository: Path) -> Path:
    return repository / "examples" / "tiny" / "model"


@pytest.fixture(scope="module")
def baseline(tiny: Path, engine_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("baseline") / "f16.gguf"
    make_gguf(engine_python, GGUF.worker, tiny, F16, out)
    return out


@pytest.mark.parametrize(
    "form", [form for form in LlamaCpp().card.formats if form != CandidateFormat.AS_IS], ids=str
)
def test_a_format_is_what_it_says(
    form: CandidateFormat, tiny: Path, baseline: Path, engine_python: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model.gguf"
    make_gguf(engine_python, GGUF.worker, tiny, form, out)
    assert predicted(tiny, form) == pytest.approx(out.stat().st_size, rel=0.02)
    worst = worst_weight(compare_gguf(engine_python, GGUF.comparer, baseline, out))
    assert worst.error is not None
    assert worst.error < ROUNDING[form] / 2
    engine = LlamaCpp()
    config = ServingConfig(served_name="test", batch=1, context=64, threads=1)
    command = engine.command(str(engine_python), str(engine.server_worker), str(out), config)
    with (
        serve(command, served_name="test", log=tmp_path / "log") as served,
        EngineApi(served.base_url) as api,
    ):
        text = api.complete("test", "If the file does not exist, a", 6).text
    assert text.split()[0].isalpha()


@pytest.mark.parametrize(
    ("family", "form"), [("llama", "f32"), ("llama", "q5_k_m"), ("qwen3", "q8_0"), ("qwen3", "q4_0")]
)
def test_sizes_are_predicted_where_rows_do_not_divide_into_blocks(
    family: str, form: str, engine_python: Path, tmp_path: Path
) -> None:
    model = write_random_model(tmp_path / "model", family=family)
    ragged = FFN - 16
    changed: dict[str, np.ndarray | None] = {}
    for name, values in read_floats(model / "model.safetensors").items():
        if "gate_proj" in name or "up_proj" in name:
            changed[name] = values[:ragged]
        if "down_proj" in name:
            changed[name] = values[:, :ragged]
    changed["lm_head.weight"] = read_floats(model / "model.safetensors")["model.embed_tokens.weight"]
    rewrite_model(
        model,
        config={"intermediate_size": ragged, "tie_word_embeddings": family == "qwen3"},
        tensors=changed,
    )
    out = tmp_path / "model.gguf"
    make_gguf(engine_python, GGUF.worker, model, CandidateFormat(form), out)
    assert predicted(model, CandidateFormat(form)) == pytest.approx(out.stat().st_size, rel=0.02)


def test_damage_is_found_where_no_text_would_show_it(
    tiny: Path, baseline: Path, engine_python: Path, tmp_path: Path
) -> None:
    """The first layer's attention hardly takes part in what this model says (benchmarks/results/quantization.json)."""
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    name = "model.layers.0.self_attn.k_proj.weight"
    values = read_floats(model / "model.safetensors")[name]
    noise = np.random.default_rng(3).normal(0, values.std(), values.shape)
    rewrite_model(model, tensors={name: values + noise.astype(np.float32)})
    out = tmp_path / "damaged.gguf"
    make_gguf(engine_python, GGUF.worker, model, CandidateFormat.Q8_0, out)
    worst = worst_weight(compare_gguf(engine_python, GGUF.comparer, baseline, out))
    assert reject_weights(worst, CandidateFormat.Q8_0, F16) == snapshot(
        "damaged: its tensor blk.0.attn_k.weight differs from that of f16 by 99% of its own deviation, rounding makes 4% at most"
    )
