"""guidellm as a child process, with its recorded reports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from blocks.engine.guidellm import Guidellm
from tasks.batching.guidellm import Target
from tasks.core.errors import CommandError, EngineHungError, EngineSlowError
from tasks.core.load import Load, OpenLoad

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[3]
LOAD = Load(clients=4, prompt_tokens=64, output_tokens=32)
OPEN = OpenLoad(rate_per_s=10, requests=40, prompt_tokens=64, output_tokens=32)


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A stand-in for the Python of guidellm's environment."""
    return shutil.copy2(TESTS / "support" / "recorded_guidellm.py", tmp_path / "python")


def loaded(python: Path, report: str | None = None) -> Guidellm:
    if report:
        shutil.copy(TESTS / "golden" / "guidellm" / f"{report}.json", python.with_name("report.json"))
    return Guidellm(python, Target("http://127.0.0.1:1", "tiny", Path("/models/tiny")))


def test_a_run_is_one_process_that_leaves_nothing(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = python.parent / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    figures = loaded(python, "closed").run(LOAD)
    assert figures.requests > 100
    open_figures, waits = loaded(python, "open").run_open(OPEN)
    assert open_figures.requests == len(waits) == 40
    calls = [json.loads(line) for line in python.with_name("calls").read_text().splitlines()]
    assert [call["argv"][1] for call in calls] == ["run"] * 2
    assert {call["offline"] for call in calls} == {"1"}
    assert list(folder.iterdir()) == []


def test_an_engine_that_needs_longer_gets_longer(python: Path) -> None:
    """The recorded run has no whole answer, however long it is."""
    with pytest.raises(EngineSlowError, match="0 of 4 clients"):
        loaded(python, "endless").run(LOAD.model_copy(update={"timeout_s": 60}))
    calls = [json.loads(line)["argv"] for line in python.with_name("calls").read_text().splitlines()]
    lengths = [json.loads(argv[argv.index("--constraint") + 1]) for argv in calls]
    assert [length["seconds"] for length in lengths] == [5, 20, 60]


def test_what_the_engine_did_is_an_engines_error(python: Path) -> None:
    with pytest.raises(EngineHungError):
        loaded(python, "hung").run(LOAD)


def test_a_generator_that_fails_is_no_failure_of_the_engine(python: Path) -> None:
    with pytest.raises(CommandError, match="guidellm wrote no report"):
        loaded(python).run(LOAD)
    python.with_name("status").write_text("1")
    with pytest.raises(CommandError, match="the load by guidellm failed: python exited with 1") as caught:
        loaded(python).run(LOAD)
    assert caught.value.fix == "set tuning.load_generator to builtin"
    assert "no such tokenizer" in (caught.value.detail or "")
