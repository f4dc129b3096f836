"""What engines are started with, compared whole with `tests/golden/engines`."""

from __future__ import annotations

import pytest
from engine_golden import CONFIG, DIGEST, GOLDEN, pages

from tasks.core.errors import NotFoundError, SpecError
from tasks.core.spec import EngineKind
from tasks.engines.catalogue import get_engine
from tasks.engines.container import stock_container

PAGES = pages()


@pytest.mark.parametrize("path", sorted(PAGES))
def test_a_command_or_manifest_is_as_its_golden_file(path: str) -> None:
    assert (GOLDEN / path).read_text() == PAGES[path], "make them anew: python tests/support/engine_golden.py"


def test_there_is_no_other_golden_file() -> None:
    there = {str(file.relative_to(GOLDEN)) for file in GOLDEN.rglob("*") if file.is_file()}
    assert there == set(PAGES)


def test_an_image_of_another_engine_is_refused() -> None:
    with pytest.raises(
        SpecError, match=r"ollama/ollama is no image of vllm \(give the digest of vllm/vllm-openai:"
    ):
        stock_container(get_engine(EngineKind.VLLM), f"ollama/ollama@{DIGEST}", "/m", CONFIG)
    mirrored = f"registry.example/mirror/vllm-openai@{DIGEST}"
    assert stock_container(get_engine(EngineKind.VLLM), mirrored, "/m", CONFIG).image == mirrored
    with pytest.raises(NotFoundError, match="Transformers serve has no image"):
        stock_container(get_engine(EngineKind.TRANSFORMERS), f"x@{DIGEST}", "/m", CONFIG)
