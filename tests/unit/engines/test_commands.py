"""What engines are started with, compared whole with `tests/golden/engines`."""

from __future__ import annotations

import pytest
from engine_golden import CONFIG, GOLDEN, pages

from tasks.core.errors import NotFoundError
from tasks.core.spec_kinds import EngineKind
from tasks.engines.catalogue import get_engine

PAGES = pages()


@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_command_is_as_its_golden_file(name: str) -> None:
    assert (GOLDEN / name).read_text() == PAGES[name], "make them anew: python tests/support/engine_golden.py"


def test_there_is_no_other_golden_file() -> None:
    assert {file.name for file in GOLDEN.iterdir()} == set(PAGES)


def test_an_engine_without_a_module_says_what_it_lacks() -> None:
    with pytest.raises(NotFoundError, match="Slipway cannot start Ollama yet: Ollama is not"):
        get_engine(EngineKind("ollama")).command("python", "", "/m", CONFIG)
