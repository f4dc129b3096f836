"""Every example is a valid spec: examples are documentation that is checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.core.spec import load_spec

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*/slipway.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.parent.name for path in EXAMPLES])
def test_an_example_is_a_valid_spec(path: Path) -> None:
    spec = load_spec(path)
    assert spec.tuning.quality_text is not None
    assert spec.tuning.quality_text.exists()
    if spec.model.startswith("file:"):
        assert Path(spec.model.removeprefix("file:")).is_dir()


def test_there_are_examples() -> None:
    assert {path.parent.name for path in EXAMPLES} == {"docker", "registry", "tiny"}
