"""A model that comes as GGUF, or quantized, is its own candidate: a link to what was staged."""

from __future__ import annotations

import errno
import math
import os
import shutil
from array import array
from pathlib import Path
from typing import Any

import pytest
from inline_snapshot import snapshot
from quantized_model import write_int8_model
from random_model import source_of
from small_gguf import write_gguf, write_parts

from tasks.core.errors import ModelError, SpecError
from tasks.core.manifest import MANIFEST_FILE
from tasks.core.model_shape import read_model_config
from tasks.core.progress import added_listener
from tasks.core.settings import Settings
from tasks.core.spec_kinds import CandidateFormat, QuantizationPolicy
from tasks.core.verdicts import ChoiceVerdict
from tasks.quantization import report
from tasks.quantization.apply import measure_candidates, still_good
from tasks.quantization.models import (
    Candidate,
    QuantizationRequest,
    QuantizationResult,
    Score,
    Trial,
    TrialPlan,
)
from tasks.quantization.sizes import Source, serving_bytes
from tasks.quantization.source import (
    gguf_in,
    read_baseline,
    read_gguf_source,
    read_quantized_source,
    weights_in,
)
from tasks.quantization.store import DOCUMENT, CandidateDocument

AS_IS = CandidateFormat.AS_IS


class Bench:
    """Makes and compares nothing."""

    def convert(self, worker: Path, model_dir: Path, form: CandidateFormat, out: Path) -> None:
        raise AssertionError("nothing is made")

    def compare_weights(self, worker: Path, baseline: Path, candidate: Path) -> dict[str, float | None]:
        raise AssertionError("there is nothing to compare with")

    def try_candidate(self, candidate: Candidate, plan: TrialPlan) -> Trial:
        score = Score(1, -1.0, array("i", [1, 2]), array("f", [-1.0, -2.0]))
        scores = (score,) * plan.tokens if plan.text else ()
        return Trial(tokens_per_s=(10.0, 10.0, 10.0), scores=scores)


@pytest.fixture
def staged(slipway_home: Path) -> Path:
    folder = Settings.load().models / "m"
    folder.mkdir(parents=True)
    return folder


def measured(folder: Path, memory_bytes: int | None = None) -> QuantizationResult:
    source = read_gguf_source(folder, gguf_in(folder))
    request = QuantizationRequest(
        model_dir=folder,
        model_digest="sha256:" + "a" * 64,
        formats=(AS_IS,),
        text=None,
        tokens=64,
        context=64,
        tolerance=0.01,
        memory_bytes=memory_bytes,
        as_is=source.as_is,
        stored_as=source.stored_as,
    )
    return measure_candidates(request, source, Bench(), Settings.load())


def test_one_file_is_linked_and_named_by_its_quantization(staged: Path) -> None:
    path = write_gguf(staged / "m-Q4_K_M.gguf")
    result = measured(staged)
    candidate = result.candidate
    assert (candidate.path.name, candidate.title) == ("model.gguf", "as-is (q4_k_m)")
    assert candidate.path.samefile(path)
    assert report.headline(result).startswith("as-is (q4_k_m), ")
    assert still_good(result)
    assert QuantizationResult.model_validate_json(result.model_dump_json()).candidate == candidate
    assert measured(staged).candidate == candidate
    path.write_bytes(b"changed in place")
    assert not still_good(result)


def test_parts_become_a_folder_of_links(staged: Path) -> None:
    paths = write_parts(staged)
    (staged / "README.md").write_text("not part of it")
    result = measured(staged)
    candidate = result.candidate
    assert sorted(path.name for path in candidate.path.iterdir()) == [path.name for path in paths]
    assert all((candidate.path / path.name).samefile(path) for path in paths)
    assert candidate.size_bytes == sum(path.stat().st_size for path in paths)
    assert candidate.log.parent.name == candidate.path.parent.name
    (candidate.path / paths[1].name).unlink()
    assert not still_good(result)
    assert still_good(measured(staged))


def test_on_another_file_system_it_is_copied(staged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(staged / "m.gguf")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    candidate = measured(staged).candidate
    assert not candidate.path.samefile(path)
    assert candidate.path.read_bytes() == path.read_bytes()


def test_what_does_not_fit_is_not_served(staged: Path) -> None:
    write_gguf(staged / "m.gguf")
    result = measured(staged, memory_bytes=1000)
    assert result.verdict is ChoiceVerdict.NONE
    assert "it would need" in result.reason


def test_a_damaged_staged_file_is_refused(staged: Path) -> None:
    path = write_gguf(staged / "m.gguf")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match="is cut off"):
        measured(staged)


def test_safetensors_go_first(staged: Path) -> None:
    write_gguf(staged / "m.gguf")
    (staged / "model.safetensors").touch()
    assert gguf_in(staged) == ()


@pytest.fixture
def int8(staged: Path, random_model: Path) -> Path:
    shutil.rmtree(staged)
    write_int8_model(random_model, staged)
    (staged / MANIFEST_FILE).write_text("written by staging, not a file of the model")
    return staged


def folder_request(folder: Path, **values: Any) -> tuple[QuantizationRequest, Source]:
    config = read_model_config(folder)
    weights = weights_in(folder, config)
    assert weights is not None
    source = read_quantized_source(folder, config, weights)
    asked = QuantizationRequest(
        model_dir=folder,
        model_digest="sha256:" + "b" * 64,
        formats=(AS_IS,),
        tokens=64,
        context=128,
        layout="hf-folder",
        as_is=source.as_is,
        stored_as=source.stored_as,
        **({"text": None, "tolerance": 0.01} | values),
    )
    return asked, source


def test_a_quantized_folder_is_linked_with_all_its_files(int8: Path) -> None:
    asked, source = folder_request(int8)
    result = measure_candidates(asked, source, Bench(), Settings.load())
    candidate = result.candidate
    assert candidate.title == "as-is (compressed-tensors, int8)"
    names = sorted(path.name for path in int8.iterdir() if path.name != MANIFEST_FILE)
    assert sorted(path.name for path in candidate.path.iterdir()) == names
    assert all((candidate.path / name).samefile(int8 / name) for name in names)
    assert candidate.size_bytes == sum((int8 / name).stat().st_size for name in names)
    assert result.measured[0].predicted_bytes == candidate.size_bytes


def test_memory_is_that_of_the_files_or_of_16_bits(int8: Path, random_model: Path) -> None:
    asked, source = folder_request(int8)
    whole = sum(math.prod(dims) * 2 for dims in source_of(random_model).shapes.values())
    assert source.unpacked_bytes == pytest.approx(whole, rel=0.02)  # and the scales
    between = (source.as_is_bytes + source.unpacked_bytes) // 2 + serving_bytes(0, source.shape, 256)
    for unpacks, verdict in ((False, ChoiceVerdict.CHOSEN), (True, ChoiceVerdict.NONE)):
        limited = asked.model_copy(update={"memory_bytes": between, "unpacks": unpacks})
        assert measure_candidates(limited, source, Bench(), Settings.load()).verdict is verdict


def test_without_a_baseline_nothing_is_said_to_be_kept(int8: Path) -> None:
    asked, source = folder_request(int8, text="a text")
    lines: list[str] = []
    with added_listener(lambda _, line: lines.append(line)):
        result = measure_candidates(asked, source, Bench(), Settings.load())
    assert report.headline(result) == snapshot(
        "as-is (compressed-tensors, int8), 0.4 MB, perplexity 2.72 without a baseline to compare with, 10 tokens/s"
    )
    assert set(report.numbers(result)) == {"size_bytes", "predicted_size_bytes", "tokens_per_s", "perplexity"}
    assert result.reason == "the model is served as it comes"
    page = report.markdown(result)
    assert "there was no baseline to compare it with" in page
    assert report.table(result)[1][0] == snapshot(
        ("as-is", "0.4 MB", "10 ± 0%", "not known", "2.718", "**chosen**")
    )
    for text in (page, *lines, report.headline(result)):
        assert "keeps" not in text
        assert "100" not in text.replace("sha256", "")
    assert report.what_would_change(result) == []


class Scores(Bench):
    """Scores that candidates get by the name of the model that they are links to; served in this order."""

    def __init__(self, **scores: tuple[float, int]) -> None:
        self.scores, self.served = scores, list[CandidateFormat]()

    def try_candidate(self, candidate: Candidate, plan: TrialPlan) -> Trial:
        self.served.append(candidate.format)
        logprob, token = self.scores["own" if candidate.format is AS_IS else "baseline"]
        score = Score(token, logprob, array("i", [token, 2]), array("f", [logprob, -3.0]))
        return Trial(tokens_per_s=(10.0, 10.0, 10.0), scores=(score,) * plan.tokens)


def compared(int8: Path, model: Path, bench: Bench, **values: Any) -> QuantizationResult:
    baseline, _ = read_baseline(model, "sha256:" + "c" * 64)
    formats = (baseline.format, AS_IS)
    asked, source = folder_request(int8, text="a text", baseline=baseline, **values)
    return measure_candidates(asked.model_copy(update={"formats": formats}), source, bench, Settings.load())


def test_with_a_baseline_it_is_held_to_the_floor(int8: Path, random_model: Path) -> None:
    bench = Scores(own=(-1.001, 1), baseline=(-1.0, 1))
    result = compared(int8, random_model, bench)
    assert bench.served == [CandidateFormat.BF16, AS_IS]
    assert result.candidate.format is AS_IS
    assert result.has_baseline
    assert "keeps 99.90% or more" in report.headline(result)
    base, own = result.measured
    assert (base.compared_only, base.passed_over) == (
        True,
        "the baseline, which is compared with and not served",
    )
    assert own.weights is None
    assert base.candidate is not None
    assert (base.candidate.path / "model.safetensors").samefile(random_model / "model.safetensors")
    assert report.what_would_change(result)[1:] == []  # no policy would choose the baseline
    assert QuantizationResult.model_validate_json(result.model_dump_json()) == result

    lossy = compared(int8, random_model, Scores(own=(-1.5, 1), baseline=(-1.0, 1)))
    assert lossy.verdict is ChoiceVerdict.NONE
    assert "loses" in lossy.reason
    strict = compared(int8, random_model, bench, policy=QuantizationPolicy.ACCURACY, tolerance=0.9)
    assert strict.candidate.format is AS_IS


def test_a_baseline_of_another_model_is_refused(int8: Path, random_model: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="splits the text into other tokens"):
        compared(int8, random_model, Scores(own=(-1.0, 1), baseline=(-1.0, 5)))
    with pytest.raises(ModelError, match=r"tuning.baseline comes in compressed-tensors, int8"):
        read_baseline(int8, "sha256:c")
    gguf = write_gguf(tmp_path / "m.gguf")
    with pytest.raises(ModelError, match=r"tuning.baseline comes in q4_k_m"):
        read_baseline(gguf.parent, "sha256:c")


def test_a_baseline_that_does_not_fit_is_said(int8: Path, random_model: Path) -> None:
    result = compared(int8, random_model, Scores(), memory_bytes=1000)
    assert result.verdict is ChoiceVerdict.NONE
    assert "no baseline to compare with" in result.reason


def test_documents_of_before_are_read(tmp_path: Path) -> None:
    text = '{"schema": "slipway.candidate/1", "model_digest": "a", "maker_digest": "b", "format": "f16", "digest": "c", "size_bytes": 1}'
    document = CandidateDocument.model_validate_json(text)
    assert (document.format, document.stored_as) == (CandidateFormat.F16, None)
    old = {"format": "f16", "path": str(tmp_path / DOCUMENT), "digest": "c", "size_bytes": 1}
    assert Candidate.model_validate(old).title == "f16"
