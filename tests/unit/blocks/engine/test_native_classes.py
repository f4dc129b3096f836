"""What an engine says of models that it should serve without their code. The real answers: integration tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from blocks.engine.native_classes import check_native
from tasks.core.errors import ModelError
from tasks.core.progress import added_listener
from tasks.engines.transformers import Transformers
from tasks.engines.vllm import Vllm

KNOWS_ONE = "import json, sys; print(json.dumps({'native': sys.argv[1] == 'one'}))"


class Asked(Transformers):
    """The engine with another script."""

    def __init__(self, script: Path) -> None:
        super().__init__()
        self.script = script

    @property
    def native_classes(self) -> Path:
        return self.script


def asked(folder: Path, script: str, model_type: str) -> list[str]:
    path = folder / "script.py"
    path.write_text(script)
    lines: list[str] = []
    with added_listener(lambda _, line: lines.append(line)):
        check_native(Asked(path), Path(sys.executable), model_type, "file:/m")
    return lines


def test_a_type_that_the_engine_lacks_is_refused_with_the_way_out(tmp_path: Path) -> None:
    assert asked(tmp_path, KNOWS_ONE, "one") == [
        "asking transformers whether it knows models of the type 'one'"
    ]
    with pytest.raises(ModelError) as refused:
        asked(tmp_path, KNOWS_ONE, "two\n")
    assert str(refused.value) == (
        "file:/m comes with code of its own, which is not run, and transformers has no classes for models of the type "
        r"'two\n' (if you trust that code, set serving.trust_remote_code: true)"
    )


@pytest.mark.parametrize("script", ["print('no JSON')", "print('[]')", "print('{}')", "raise SystemExit(1)"])
def test_where_it_does_not_tell_its_start_does(tmp_path: Path, script: str) -> None:
    assert asked(tmp_path, script, "one")[1:] == ["transformers does not tell: its first start will"]


def test_an_engine_without_a_script_is_not_asked() -> None:
    with added_listener(lambda *_: pytest.fail("it says something")):
        check_native(Vllm(), Path("/none"), "one", "file:/m")
