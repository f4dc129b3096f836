"""A model that comes as GGUF is its own candidate: a link to what was staged."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from small_gguf import write_gguf, write_parts

from tasks.core.errors import ModelError
from tasks.core.settings import Settings
from tasks.core.spec import CandidateFormat
from tasks.core.verdicts import ChoiceVerdict
from tasks.quantization import report
from tasks.quantization.apply import measure_candidates, still_good
from tasks.quantization.models import Candidate, QuantizationRequest, QuantizationResult, Trial, TrialPlan
from tasks.quantization.source import gguf_in, read_gguf_source
from tasks.quantization.store import DOCUMENT, CandidateDocument

AS_IS = CandidateFormat.AS_IS


class Bench:
    """Makes and compares nothing."""

    def convert(self, worker: Path, model_dir: Path, form: CandidateFormat, out: Path) -> None:
        raise AssertionError("nothing is made")

    def compare_weights(self, worker: Path, baseline: Path, candidate: Path) -> dict[str, float | None]:
        raise AssertionError("there is nothing to compare with")

    def try_candidate(self, candidate: Candidate, plan: TrialPlan) -> Trial:
        return Trial(tokens_per_s=(10.0, 10.0, 10.0))


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
        as_is=source.gguf,
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


def test_documents_of_before_are_read(tmp_path: Path) -> None:
    text = '{"schema": "slipway.candidate/1", "model_digest": "a", "maker_digest": "b", "format": "f16", "digest": "c", "size_bytes": 1}'
    document = CandidateDocument.model_validate_json(text)
    assert (document.format, document.stored_as) == (CandidateFormat.F16, None)
    old = {"format": "f16", "path": str(tmp_path / DOCUMENT), "digest": "c", "size_bytes": 1}
    assert Candidate.model_validate(old).title == "f16"
