"""An engine that loads folders: its formats, hardware, texts and quantizer come together in the flow."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from trials import trial

from blocks.candidates.folder_bench import FolderBench
from blocks.storage.record_store import open_record_store
from flows import candidate_bench
from flows.tune_serving import TuningRequest, quantized
from tasks.core.errors import SpecError
from tasks.core.facts import Gpu
from tasks.core.gpus import HostGpu, choose_gpus
from tasks.core.settings import Settings
from tasks.core.spec import CandidateFormat, EngineKind, Hardware, Objectives, Tuning
from tasks.core.verdicts import StageName
from tasks.environment.models import Locked, LockRequest
from tasks.quantization.models import Trial

pytestmark = pytest.mark.server

BF16, W8A8, W4A16, FP8 = (CandidateFormat(name) for name in ("bf16", "w8a8", "w4a16", "fp8"))
QUANTIZER = Path("/quantizer/bin/python")
SPEEDS = {"bf16": 100.0, "w8a8": 200.0, "w4a16": 150.0}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path | None]]:
    """Formats with the quantizer's Python, in the order they were made, by a bench that runs nothing."""
    done: list[tuple[str, Path | None]] = []

    def convert(bench: FolderBench, worker: Path, model_dir: Path, form: CandidateFormat, out: Path) -> None:
        done.append((form.value, bench.quantizer))
        out.mkdir()
        (out / "model.safetensors").write_text(form)

    def try_candidate(bench: FolderBench, model: Path, log: Path, **asked: Any) -> Trial:
        return trial(-3.0, SPEEDS[(model / "model.safetensors").read_text()])

    monkeypatch.setattr(FolderBench, "convert", convert)
    monkeypatch.setattr(FolderBench, "compare_weights", lambda *_: {"w": 0.001})
    monkeypatch.setattr(FolderBench, "try_candidate", try_candidate)
    lock = LockRequest(requirements=("llmcompressor",), python="3.11", platform="linux-x86_64")
    locked = Locked(path=Path("/lock"), digest="sha256:" + "l" * 64, packages={}, request=lock)
    monkeypatch.setattr(candidate_bench, "lock_tool", lambda *_, **__: locked)
    monkeypatch.setattr(candidate_bench, "build_tool", lambda *_: QUANTIZER)
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
    monkeypatch.setattr(candidate_bench, "lock_tool", lambda *_, **__: pytest.fail("no format needs it"))
    quantized(ask(BF16, FP8))
    assert made == [("bf16", None)]


def test_the_gpus_in_use_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest are used."""
    gpus = [
        HostGpu(index, Gpu(name=name, compute_capability=capability, memory_bytes=size))
        for index, (name, capability, size) in enumerate(
            [("A30", "8.0", 24), ("H100", "9.0", 80), ("odd", None, 8)]
        )
    ]
    monkeypatch.setattr(candidate_bench, "gpus_in_use", partial(choose_gpus, gpus))
    tuning = Tuning(candidates=(BF16, FP8), quality_text=Path("/t"))
    found = [
        candidate_bench.infeasible(EngineKind.VLLM, tuning, Hardware(gpus=count)).get(FP8, "")
        for count in range(4)
    ]
    needs = "not made: vllm computes in fp8 from compute capability 8.9 on"
    assert found == [
        f"{needs}, and no GPU is used (hardware.gpus)",
        "",
        f"{needs}, a GPU in use has 8.0",
        f"{needs}, and that of a GPU in use is not known",
    ]


@pytest.mark.parametrize(
    ("formats", "tuning", "message"),
    [
        ((BF16, CandidateFormat.Q8_0), {}, "transformers does not load q8_0"),
        ((BF16, W4A16), {"calibration_text": Path("/no/text")}, "no tuning.calibration_text /no/text"),
        ((BF16, W4A16), {"context": 100_000}, "the model was made for"),
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
