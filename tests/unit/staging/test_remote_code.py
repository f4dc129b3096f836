"""Code that a model brings along: which files it is, that none is missing, and that it is only looked at."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inline_snapshot import snapshot

from blocks.storage.model_source import FolderSource
from tasks.core.errors import ModelError
from tasks.core.remote_code import code_named, files_imported
from tasks.staging.apply import CopyPlan, plan_copy
from tasks.staging.source import pin

MAP = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}


@pytest.fixture
def own(random_model: Path, tmp_path: Path) -> Path:
    """A model with code of its own. Whoever runs it, raises."""
    folder = tmp_path / "own"
    folder.mkdir()
    for path in random_model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    say(folder, MAP)
    (folder / "configuration_own.py").write_text("raise RuntimeError('was run')\n")
    (folder / "modeling_own.py").write_text(
        "from .configuration_own import OwnConfig\nfrom .parts import one\n"
    )
    (folder / "parts.py").write_text("import math\nraise RuntimeError('was run')\n")
    (folder / "train.py").write_text("not named by anything")
    return folder


def say(folder: Path, auto_map: Any, document: str = "config.json") -> None:
    config = json.loads((folder / document).read_text())
    (folder / document).write_text(json.dumps({**config, "auto_map": auto_map}))


def planned(folder: Path, *, trusted: bool) -> CopyPlan:
    return plan_copy(
        pin(FolderSource(folder)), 1, convertible=False, servable=True, trust_remote_code=trusted
    )


def code_of(plan: CopyPlan) -> list[str]:
    return sorted(file.path for file in plan.files if file.path.endswith(".py"))


def test_the_named_files_and_what_they_import_are_staged_and_told_with_digests(own: Path) -> None:
    trusted, not_trusted = planned(own, trusted=True), planned(own, trusted=False)
    named = ["configuration_own.py", "modeling_own.py", "parts.py"]
    # The same files either way, so that a model is not copied again when it is trusted.
    assert code_of(trusted) == code_of(not_trusted) == named
    digests = [f"{name} (sha256:{hashlib.sha256((own / name).read_bytes()).hexdigest()})" for name in named]
    assert trusted.findings == (
        f"comes with code of its own, which the engine runs in its environment: {', '.join(digests)}",
        "not part of the model, not copied: train.py",
    )
    assert not_trusted.findings[0].startswith(
        "comes with code of its own, which is not run (serving.trust_remote_code): configuration_own.py (sha256:"
    )
    assert not any(name.endswith(("modeling_own", "configuration_own")) for name in sys.modules)


def test_a_tokenizer_may_bring_code_too(own: Path) -> None:
    say(own, {})
    assert code_of(planned(own, trusted=True)) == []
    say(own, {"AutoTokenizer": ["tokenization_own.Slow", None]}, "tokenizer_config.json")
    (own / "tokenization_own.py").touch()
    assert code_of(planned(own, trusted=True)) == ["tokenization_own.py"]


def test_missing_code_is_one_line_and_only_if_it_is_to_be_run(own: Path) -> None:
    def refused(**auto_map: str) -> str:
        say(own, auto_map)
        with pytest.raises(ModelError) as error:
            planned(own, trusted=True)
        return str(error.value).replace(str(own), "HERE")

    (own / "parts.py").unlink()
    found = [
        refused(**MAP),
        refused(AutoModel="gone.Model"),
        refused(AutoModel="microsoft/Phi-3-mini-4k-instruct--modeling_phi3.Phi3Model"),
    ]
    assert found == snapshot(
        [
            "file:HERE lacks parts.py, the code that modeling_own.py names (copy or download the whole model, with its .py files)",
            "file:HERE lacks gone.py, the code that auto_map names (copy or download the whole model, with its .py files)",
            "file:HERE names code in another repository: microsoft/Phi-3-mini-4k-instruct--modeling_phi3.Phi3Model (copy that file into the model's folder, and name it in auto_map without the repository)",
        ]
    )
    for auto_map in (MAP, {"AutoModel": "gone.Model"}, {"AutoModel": "org/repo--x.Y"}):
        say(own, auto_map)
        assert any("is not run" in finding for finding in planned(own, trusted=False).findings)
    (own / "modeling_own.py").write_bytes(b"#" * 10_000_001)
    say(own, MAP)
    with pytest.raises(ModelError, match="too many for code"):
        planned(own, trusted=True)


@pytest.mark.parametrize("name", ["../x.Y", "a/b.C", ".hidden", "x", "x.", "x.Y.Z", "x.Y\n", "", "a b.C"])
def test_names_that_are_no_class_in_a_file(name: str) -> None:
    with pytest.raises(ModelError, match="which is not a class in a file of the model"):
        code_named([{"auto_map": {"AutoModel": name}}])


def test_what_is_no_map_names_nothing() -> None:
    for value in (None, [], "x.Y", {"AutoModel": None}, {"AutoModel": 3}, {"AutoTokenizer": [None, 1]}):
        assert not code_named([{"auto_map": value}, {}])
    nested = code_named([{"text_config": {"auto_map": {"AutoConfig": "configuration_x.X"}}}])
    assert nested.files == ("configuration_x.py",)


def test_imports_from_beside_it() -> None:
    text = b"""
from .a import x
    from .b.c import (y,
import .d
from . import e, f as g
from .. import no
from transformers import no2
# from .comment import z
x = "from .text import z"
"""
    assert files_imported(text) == ("a.py", "b.py", "d.py", "e.py", "f.py")


@given(st.binary(max_size=200))
def test_any_text_is_looked_at(text: bytes) -> None:
    assert all(
        name.removesuffix(".py").isidentifier() for name in files_imported(text + b"\nfrom .x import y")
    )
