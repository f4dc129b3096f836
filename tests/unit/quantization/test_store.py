"""Candidates on disk are known by all of their bytes, be they a file or a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.core.digests import digest_of_model
from tasks.core.spec_kinds import CandidateFormat
from tasks.quantization.models import Candidate
from tasks.quantization.store import (
    CandidateDocument,
    is_whole,
    read_candidate,
    remove_model,
    size_of,
)


def folder(root: Path) -> Path:
    (root / "model" / "deep").mkdir(parents=True)
    (root / "model" / "model.safetensors").write_bytes(b"weights")
    (root / "model" / "deep" / "config.json").write_bytes(b"{}")
    return root / "model"


def candidate(path: Path) -> Candidate:
    return Candidate(
        format=CandidateFormat.W8A8, path=path, digest=digest_of_model(path), size_bytes=size_of(path)
    )


def same_size(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"weighty")


def renamed(path: Path) -> None:
    (path / "model.safetensors").rename(path / "other.safetensors")


def another(path: Path) -> None:
    (path / "adapter.safetensors").write_bytes(b"")


def gone(path: Path) -> None:
    remove_model(path)


@pytest.mark.parametrize("change", [same_size, renamed, another, gone])
def test_any_change_of_a_folder_shows(change: Callable[[Path], None], tmp_path: Path) -> None:
    made = candidate(folder(tmp_path))
    assert is_whole(made)
    change(made.path)
    assert not is_whole(made)


def test_the_size_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    assert size_of(folder(tmp_path)) == len(b"weights") + len(b"{}")
    with pytest.raises(FileNotFoundError):
        size_of(tmp_path / "none")


def test_a_document_without_its_folder_or_of_another_model_is_no_candidate(tmp_path: Path) -> None:
    made = candidate(folder(tmp_path))
    document = CandidateDocument(
        model_digest="sha256:m", maker_digest="sha256:w", **made.model_dump(exclude={"path"})
    )
    (tmp_path / "candidate.json").write_text(document.model_dump_json(by_alias=True))
    assert read_candidate(tmp_path, "model", "sha256:m") == made
    assert read_candidate(tmp_path, "model", "sha256:other") is None
    remove_model(made.path)
    assert read_candidate(tmp_path, "model", "sha256:m") is None
    remove_model(made.path)  # what is not there is removed
