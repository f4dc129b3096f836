"""docs/spec.md says what the spec is."""

from __future__ import annotations

from pathlib import Path

from spec_reference import page


def test_the_reference_page_is_up_to_date(repository: Path) -> None:
    assert (repository / "docs" / "spec.md").read_text() == page(), (
        "make it anew: .venv/bin/python tests/support/spec_reference.py > docs/spec.md"
    )
