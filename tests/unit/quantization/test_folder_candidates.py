"""Candidates in folders: what names them, which are not made, and that a damaged one is made anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from random_model import HEAD_DIM, KV_HEADS, LAYERS, source_of
from trials import measure, trial

from tasks.core.errors import SpecError
from tasks.core.settings import Settings
from tasks.core.spec_kinds import CandidateFormat
from tasks.quantization import report
from tasks.quantization.apply import predict_sizes
from tasks.quantization.models import Calibration, Candidate, QuantizationRequest, Trial, TrialPlan
from tasks.quantization.plan import check_held_out
from tasks.quantization.recipe import maker_digest

BF16, W8A8, W4A16, FP8 = (CandidateFormat(name) for name in ("bf16", "w8a8", "w4a16", "fp8"))
CALIBRATION = Calibration(text="some text", tokens=1024, window=256)


class Bench:
    """Makes folders of a few bytes, and measures what it is told to."""

    def __init__(self, trials: dict[str, Trial]) -> None:
        self.trials = trials
        self.made: list[CandidateFormat] = []
        self.errors: dict[str, float | None] = {"w": 0.001}

    def convert(self, worker: Path, model_dir: Path, form: CandidateFormat, out: Path) -> None:
        assert worker.name == "compress.py"
        self.made.append(form)
        out.mkdir()
        (out / "model.safetensors").write_text(form)

    def compare_weights(self, worker: Path, baseline: Path, candidate: Path) -> dict[str, float | None]:
        assert worker.name == "compare_folders.py"
        return self.errors

    def try_candidate(self, candidate: Candidate, plan: TrialPlan) -> Trial:
        return self.trials[(candidate.path / "model.safetensors").read_text()]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    home = tmp_path / "home"
    return Settings(home=home, records=str(home / "records"), registry="", s3_endpoint=None)


def asked(model: Path, *formats: CandidateFormat, **more: Any) -> QuantizationRequest:
    values: dict[str, Any] = {
        "model_dir": model,
        "model_digest": "sha256:" + "a" * 64,
        "formats": formats,
        "text": "text",
        "tokens": 128,
        "context": 256,
        "tolerance": 0.02,
        "layout": "hf-folder",
        "quantizer_digest": "sha256:q",
        "calibration": CALIBRATION,
        "scored_by": "library",
        **more,
    }
    return QuantizationRequest.model_validate(values)


def test_a_folder_is_made_once_and_again_when_it_was_damaged(random_model: Path, settings: Settings) -> None:
    bench = Bench({"bf16": trial(-3.0, 50), "w8a8": trial(-3.0, 100)})
    result = measure(asked(random_model, BF16, W8A8), bench, settings)
    assert result.candidate.format == W8A8
    assert result.candidate.path.is_dir()
    assert "by the library that the engine serves with" in report.markdown(result)
    measure(asked(random_model, BF16, W8A8), bench, settings)
    assert bench.made == [BF16, W8A8]
    (result.candidate.path / "stray").touch()
    again = measure(asked(random_model, BF16, W8A8), bench, settings)
    assert bench.made == [BF16, W8A8, W8A8]
    assert again.candidate == result.candidate


def test_what_the_hardware_or_the_memory_does_not_have_is_not_made(
    random_model: Path, settings: Settings
) -> None:
    bench = Bench({"bf16": trial(-3.0, 50), "w8a8": trial(-3.0, 100)})
    request = asked(random_model, BF16, FP8, infeasible={FP8: "not made: no GPU"})
    assert measure(request, bench, settings).measured[1].rejected == "not made: no GPU"

    # What an engine unpacks needs the memory of 16 bits, however small its file is.
    keys_and_values = 256 * LAYERS * 2 * KV_HEADS * HEAD_DIM * 2
    tight = predict_sizes(request, source_of(random_model))[FP8] + keys_and_values
    packed = asked(random_model, W8A8, memory_bytes=tight, text=None)
    assert measure(packed, bench, settings).chosen is not None
    unpacked = measure(packed.model_copy(update={"unpacks": True}), bench, settings)
    assert unpacked.chosen is None
    assert "of memory at the least" in unpacked.reason
    assert bench.made == [BF16, W8A8]


def test_a_damaged_candidate_is_named(random_model: Path, settings: Settings) -> None:
    bench = Bench({"bf16": trial(-3.0, 50), "w4a16": trial(-3.0, 100)})
    bench.errors = {"model.layers.0.mlp.up_proj.weight": 1.02}
    result = measure(asked(random_model, BF16, W4A16), bench, settings)
    assert result.measured[1].rejected == (
        "damaged: its tensor model.layers.0.mlp.up_proj.weight differs from that of bf16 by 102% of its own "
        "deviation, rounding makes 81% at most"
    )


def test_a_candidate_is_named_by_what_decides_its_bytes(tmp_path: Path) -> None:
    one = asked(tmp_path, BF16)
    requantized = asked(tmp_path, BF16, quantizer_digest="sha256:other")
    recalibrated = asked(tmp_path, BF16, calibration=CALIBRATION.model_copy(update={"text": "another"}))

    def changed(other: QuantizationRequest) -> list[str]:
        forms = (BF16, W8A8, W4A16, FP8)
        return [form.value for form in forms if maker_digest(one, form) != maker_digest(other, form)]

    assert changed(requantized) == ["w8a8", "w4a16", "fp8"]
    assert changed(recalibrated) == ["w4a16"]
    assert changed(one.model_copy(update={"tolerance": 0.5})) == []


LINES = "\n".join(f"this is line number {number} of a text that somebody wrote" for number in range(100))


def test_a_text_that_is_calibrated_on_is_not_held_out() -> None:
    other = LINES.replace("somebody", "nobody")
    check_held_out(LINES, other)
    check_held_out(LINES, other + "\n" + LINES.splitlines()[0])  # a line may be a coincidence
    with pytest.raises(SpecError, match="is not held out: 100 of its 100 long lines"):
        check_held_out("before\n" + LINES, LINES)
    half = "\n".join(LINES.splitlines()[:50] + other.splitlines()[50:])
    with pytest.raises(SpecError, match="50 of its 100 long lines"):
        check_held_out(LINES, half)
    with pytest.raises(SpecError, match="not held out"):
        check_held_out("one long line without any end " * 9, "one long line without any end " * 3)
