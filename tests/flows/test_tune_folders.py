"""An engine that loads folders: its formats, hardware, texts and quantizer come together in the flow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trials import trial

from blocks.candidates.folder_bench import FolderBench
from blocks.storage.record_store import open_record_store
from flows import tune_serving
from flows.tune_serving import read_facts
from tasks.core.errors import SpecError
from tasks.core.settings import Settings
from tasks.core.spec_kinds import CandidateFormat, EngineKind
from tasks.core.spec_sections import Hardware, Objectives, Tuning
from tasks.core.stage import Outcome
from tasks.core.verdicts import StageName
from tasks.environment.models import Locked, LockRequest
from tasks.quantization.models import Candidate, QuantizationResult, Trial, TrialPlan
from tasks.tuning.models import TuningRequest

pytestmark = pytest.mark.server

BF16, W8A8, W4A16, FP8 = (CandidateFormat(name) for name in ("bf16", "w8a8", "w4a16", "fp8"))
QUANTIZER = Path("/quantizer/bin/python")
SPEEDS = {"bf16": 100.0, "w8a8": 200.0, "w4a16": 150.0}


def quantized(request: TuningRequest) -> Outcome[QuantizationResult]:
    return tune_serving.quantized(request, read_facts(request))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path | None]]:
    """Formats with the quantizer's Python, in the order they were made, by a bench that runs nothing."""
    done: list[tuple[str, Path | None]] = []

    def convert(bench: FolderBench, worker: Path, model_dir: Path, form: CandidateFormat, out: Path) -> None:
        done.append((form.value, bench.quantizer))
        out.mkdir()
        (out / "model.safetensors").write_text(form)

    def try_candidate(bench: FolderBench, candidate: Candidate, plan: TrialPlan) -> Trial:
        return trial(-3.0, SPEEDS[(candidate.path / "model.safetensors").read_text()])

    monkeypatch.setattr(FolderBench, "convert", convert)
    monkeypatch.setattr(FolderBench, "compare_weights", lambda *_: {"w": 0.001})
    monkeypatch.setattr(FolderBench, "try_candidate", try_candidate)
    lock = LockRequest(requirements=("llmcompressor",), python="3.11", platform="linux-x86_64")
    locked = Locked(path=Path("/lock"), digest="sha256:" + "l" * 64, packages={}, request=lock)
    monkeypatch.setattr(tune_serving, "lock_tool", lambda *_, **__: locked)
    monkeypatch.setattr(tune_serving, "build_tool", lambda *_: QUANTIZER)
    return done


@pytest.fixture
def ask(tmp_path: Path, random_model: Path, slipway_home: Path) -> Callable[..., TuningRequest]:
    held_out, calibration = tmp_path / "held-out.txt", tmp_path / "calibration.txt"
    held_out.write_text("a line of the text that is held out, long enough\n" * 20)
    calibration.write_text("another text, which may be calibrated on\n" * 20)

    def request(*formats: CandidateFormat, **tuning: Any) -> TuningRequest:
        return TuningRequest(
            name="folder",
            engine=EngineKind.TRANSFORMERS,
            python_path=Path("/engine/bin/python"),
            environment_digest="sha256:" + "e" * 64,
            model_dir=random_model,
            model_digest="sha256:" + "d" * 64,
            tuning=Tuning(
                candidates=formats,
                **{"quality_text": held_out, "calibration_text": calibration, "context": 128} | tuning,
            ),
            objectives=Objectives(quality_tolerance=0.05),
            hardware=Hardware(cpus=1, memory=10**9),
        )

    return request


def test_candidates_of_an_engine_that_loads_folders(
    ask: Callable[..., TuningRequest], made: list[tuple[str, Path | None]]
) -> None:
    outcome = quantized(ask(BF16, W8A8, W4A16, FP8))
    assert made == [("bf16", QUANTIZER), ("w8a8", QUANTIZER), ("w4a16", QUANTIZER)]
    result = outcome.result
    assert result.candidate.format == W8A8
    assert result.scored_by == "library"
    assert result.measured[3].rejected is not None
    assert result.measured[3].rejected.startswith("not made: transformers computes in fp8 from")
    assert quantized(ask(BF16, W8A8, W4A16, FP8)).cached
    (record,) = open_record_store(Settings.load()).list(StageName.QUANTIZATION)
    assert "another text" not in record.model_dump_json()


def test_another_text_to_calibrate_on_is_another_candidate(
    ask: Callable[..., TuningRequest], made: list[tuple[str, Path | None]], tmp_path: Path
) -> None:
    quantized(ask(BF16, W4A16))
    (tmp_path / "calibration.txt").write_text("quite another text\n" * 20)
    assert not quantized(ask(BF16, W4A16)).cached
    assert [form for form, _ in made] == ["bf16", "w4a16", "w4a16"]


def test_no_quantizer_is_installed_where_nothing_needs_it(
    ask: Callable[..., TuningRequest], made: list[tuple[str, Path | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_serving, "lock_tool", lambda *_, **__: pytest.fail("no format needs it"))
    quantized(ask(BF16, FP8))
    assert made == [("bf16", None)]


@pytest.mark.parametrize(
    ("formats", "tuning", "message"),
    [
        ((BF16, CandidateFormat.Q8_0), {}, "transformers does not load q8_0"),
        ((BF16, W4A16), {"calibration_text": Path("/no/text")}, "no tuning.calibration_text /no/text"),
        ((BF16, W4A16), {"context": 100_000}, "the model supports at most"),
    ],
)
def test_what_cannot_be_made_is_refused_before(
    ask: Callable[..., TuningRequest],
    made: list[tuple[str, Path | None]],
    formats: tuple[CandidateFormat, ...],
    tuning: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(SpecError, match=message):
        quantized(ask(*formats, **tuning))
    assert made == []


def test_a_text_is_not_calibrated_on_and_measured_on(
    ask: Callable[..., TuningRequest], made: list[tuple[str, Path | None]], tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match="is not held out"):
        quantized(ask(BF16, W4A16, calibration_text=tmp_path / "held-out.txt"))
    assert made == []
