"""Candidates in folders, made by llmcompressor for real, compared, scored by Transformers and served by it."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest
from damage import Damage
from random_model import read_floats, rewrite_model, source_of, write_random_model
from trials import measure

from blocks.candidates.candidate_worker import compare_folders, make_folder
from blocks.candidates.folder_bench import FolderBench
from blocks.engine.bench import EngineBench
from blocks.engine.native_classes import check_native
from tasks.core.errors import DiskFullError, ModelError
from tasks.core.model_shape import read_model_config
from tasks.core.serving import ServingConfig
from tasks.core.settings import Settings
from tasks.core.spec_kinds import CandidateFormat
from tasks.engines.transformers import Transformers
from tasks.quantization.folder_sizes import folder_bytes
from tasks.quantization.models import Calibration, QuantizationRequest, TaskItem
from tasks.quantization.quality import ROUNDING, worst_weight
from tasks.quantization.recipe import RECIPES, SCORER
from tasks.quantization.source import weights_in
from tasks.quantization.store import size_of

pytestmark = pytest.mark.engine

BF16, F16, W8A8, W4A16 = (CandidateFormat(name) for name in ("bf16", "f16", "w8a8", "w4a16"))
FOLDERS = RECIPES["hf-folder"]
DAMAGE = Damage("self_attn.v_proj", 1, other=3)


@pytest.fixture(scope="session")
def tiny(repository: Path) -> Path:
    return repository / "examples" / "tiny"


@pytest.fixture(scope="session")
def calibration(tiny: Path) -> Calibration:
    """The end of the text whose beginning quality is measured on."""
    return Calibration(text=(tiny / "heldout.txt").read_text()[20_000:], tokens=1024, window=256)


def predicted(model: Path, form: CandidateFormat) -> int:
    return folder_bytes(source_of(model), form)


def test_formats_are_as_large_as_predicted_and_as_near_as_rounding_allows(
    tiny: Path, calibration: Calibration, transformers_python: Path, quantizer_python: Path, tmp_path: Path
) -> None:
    model = tiny / "model"
    for form in (F16, W4A16):
        python = transformers_python if form is F16 else quantizer_python
        fitted = calibration if form is W4A16 else None
        out = tmp_path / form
        make_folder(python, FOLDERS.worker, model, form, out, threads=1, calibration=fitted)
        assert predicted(model, form) == pytest.approx(size_of(out), rel=0.02)
        worst = worst_weight(compare_folders(transformers_python, FOLDERS.comparer, model, out))
        assert worst.error is not None
        assert worst.error < ROUNDING[form] / 2
        assert (out / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
        stored = weights_in(out, read_model_config(out))
        assert (stored and stored.describe()) == {F16: None, W4A16: "compressed-tensors, w4a16"}[form]


def test_the_methods_on_the_card_are_those_that_transformers_knows(transformers_python: Path) -> None:
    """It loads a model in any other as if it were not quantized, so each must be there."""
    (file,) = transformers_python.parent.parent.glob(
        "lib/python*/site-packages/transformers/quantizers/auto.py"
    )
    tables = {
        target.id: [ast.literal_eval(key) for key in node.value.keys if key]
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    known = {
        name.removesuffix("_4bit").removesuffix("_8bit")
        for name in tables["AUTO_QUANTIZATION_CONFIG_MAPPING"]
    }
    assert {row.name for row in Transformers().card.method} == known - {"gguf"}  # it has no folder


def test_transformers_tells_which_models_it_knows(transformers_python: Path) -> None:
    check_native(Transformers(), transformers_python, "qwen3", "m")
    with pytest.raises(ModelError, match="transformers has no classes for models of the type 'of_ours'"):
        check_native(Transformers(), transformers_python, "of_ours", "m")


@dataclass(frozen=True)
class DamagedBench(FolderBench):
    """Makes W4A16 from a damaged copy of the model; the baseline and W8A8 are honest."""

    scratch: Path = Path()

    def convert(self, worker: Path, model_dir: Path, form: CandidateFormat, out: Path) -> None:
        if form is W4A16:
            model_dir = DAMAGE.apply(model_dir, self.scratch / "damaged")
        super().convert(worker, model_dir, form, out)


def test_an_honest_candidate_is_accepted_and_a_damaged_one_refused(
    tiny: Path, calibration: Calibration, transformers_python: Path, quantizer_python: Path, tmp_path: Path
) -> None:
    bench = DamagedBench(
        EngineBench(engine=Transformers(), python=transformers_python, start_timeout_s=600),
        ServingConfig(served_name="tiny", batch=1, context=64, threads=1),
        scorer=SCORER,
        quantizer=quantizer_python,
        calibration=calibration,
        scratch=tmp_path,
    )
    request = QuantizationRequest(
        model_dir=tiny / "model",
        model_digest="sha256:" + "a" * 64,
        formats=(BF16, W8A8, W4A16),
        text=(tiny / "heldout.txt").read_text()[:8000],
        tokens=1024,
        context=256,
        tolerance=0.02,
        task_items=(
            TaskItem(prompt="If the file does not", expected="exist"),
            TaskItem(prompt="If the file does not", choices=(" exist", " zebra"), answer=0),
            TaskItem(prompt="If the file does not", choices=(" zebra", " exist"), answer=0),
        ),
        task_tolerance=1.0,
        layout="hf-folder",
        unpacks=True,
        quantizer_digest="sha256:q",
        calibration=calibration,
        scored_by="library",
    )
    settings = Settings(home=tmp_path, records=str(tmp_path / "records"), registry="", s3_endpoint=None)
    result = measure(request, bench, settings)
    bf16, w8a8, w4a16 = result.measured
    assert bf16.quality is not None
    assert w8a8.quality is not None
    assert w4a16.quality is not None
    assert 5 < bf16.quality.perplexity < 60  # its model card says 16 to 19; chance would be thousands
    assert bf16.quality.right_answers == pytest.approx(2 / 3)
    assert (bf16.rejected, w8a8.rejected) == (None, None)
    assert 0 < w8a8.quality.divergence.value < 0.01
    assert w8a8.quality.loss.high < 0.02
    assert w8a8.predicted_bytes == pytest.approx(w8a8.candidate.size_bytes if w8a8.candidate else 0, rel=0.02)
    assert w8a8.tokens_per_s
    assert w4a16.rejected is not None
    assert w4a16.rejected.startswith("damaged: its tensor model.layers.")
    assert "; loses " in w4a16.rejected
    assert result.candidate.format in (BF16, W8A8)


def test_what_cannot_be_written_is_refused_with_the_way_out(
    calibration: Calibration, quantizer_python: Path, tmp_path: Path
) -> None:
    """Without loading llmcompressor but for the text that is too short."""
    model = write_random_model(tmp_path / "model")
    values = read_floats(model / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite_model(model, tensors={name: values[name] * 1e8})
    with pytest.raises(
        ModelError, match=f"{name} contains values beyond the range of 16-bit floats"
    ) as refused:
        make_folder(quantizer_python, FOLDERS.worker, model, F16, tmp_path / "f16", threads=1)
    assert refused.value.fix == "use bf16"
    rewrite_model(model, tensors={name: values[name] * float("nan")})
    with pytest.raises(ModelError, match="contains values that are not numbers"):
        make_folder(quantizer_python, FOLDERS.worker, model, BF16, tmp_path / "bf16", threads=1)
    rewrite_model(model, tensors={name: values[name]})
    short = calibration.model_copy(update={"text": "one line"})
    with pytest.raises(ModelError, match=r"calibration text has \d+ tokens; at least 1024 are needed"):
        make_folder(
            quantizer_python, FOLDERS.worker, model, W4A16, tmp_path / "w4", threads=1, calibration=short
        )


def test_a_full_disk_is_named(transformers_python: Path, tmp_path: Path, small_disk: Path) -> None:
    model = write_random_model(tmp_path / "model")
    with pytest.raises(DiskFullError, match="no space left to write"):
        make_folder(transformers_python, FOLDERS.worker, model, BF16, small_disk / "bf16", threads=1)
