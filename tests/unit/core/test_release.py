"""A service's folder: its documents, and names that lead nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.core.errors import NotFoundError, RecordError
from tasks.core.release import ServiceFolder, named_by_releases


@pytest.mark.parametrize(
    "name", ["../models", "..", ".", "", "/etc", "a/b", "a\0b", "a\nb", "a" * 300, "a\\b", "\udc80"]
)
def test_a_name_cannot_lead_out_of_the_services(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFoundError, match="is not a valid service name"):
        ServiceFolder(tmp_path, name)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model_digest": 1}', "[" * 100_000])
def test_a_release_that_cannot_be_read_lets_nothing_be_taken_for_unused(content: str, tmp_path: Path) -> None:
    release = tmp_path / "tiny" / "releases" / "a.json"
    release.parent.mkdir(parents=True)
    release.write_text(content)
    with pytest.raises(RecordError, match=f"the release {release} cannot be read"):
        named_by_releases(tmp_path, "model_digest")


def test_a_damaged_document_is_named(tmp_path: Path) -> None:
    folder = ServiceFolder(tmp_path, "tiny")
    assert folder.state() is None
    folder.root.mkdir()
    folder.state_file.write_text('{"name": "tiny"}')
    with pytest.raises(RecordError, match=r"current\.json is damaged.*: target: Field required"):
        folder.state()
