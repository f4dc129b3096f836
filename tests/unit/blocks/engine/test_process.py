"""What an engine will map is read beside its start, and no longer."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from blocks.engine.process import serve
from tasks.core.errors import EngineDiedError
from tasks.core.prefetch import Prefetched
from tasks.engines.base import HOST, PORT, CommandLine
from tasks.engines.failures import FailureKind, failure_of

SMALL_ENGINE = Path(__file__).parents[3] / "support" / "small_engine.py"


class Steps:
    """A prefetch that reads nothing and writes down when it begins and ends."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    @contextlib.contextmanager
    def __call__(self, paths: Sequence[Path]) -> Iterator[Prefetched]:
        self.seen.append(list(paths))
        try:
            yield Prefetched()
        finally:
            self.seen.append("over")


def test_the_prefetch_is_over_when_the_engine_has_completed_a_prompt(tmp_path: Path) -> None:
    steps, model = Steps(), tmp_path / "model.gguf"
    completion = '{"choices": [{"text": "x"}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}'
    command = CommandLine(argv=(sys.executable, str(SMALL_ENGINE), HOST, PORT, completion))
    with serve(command, served_name="x", log=tmp_path / "log", maps=[model], prefetch=steps):
        steps.seen.append("serves")
    assert steps.seen == [[model], "over", "serves"]


def test_why_one_of_its_processes_died_is_told_however_much_the_others_write(tmp_path: Path) -> None:
    words = (
        "WARNING long prompts may run out of memory",
        "(EngineCore pid=7) ERROR ValueError: Free memory on device cuda:0 (3.27/15.98 GiB) on startup is less than "
        "desired GPU memory utilization (0.9, 14.39 GiB).",
        *(f"  File api_server.py, line {number}" for number in range(30)),
        "RuntimeError: Engine core initialization failed. See root cause above.",
    )
    script = f"import sys; sys.exit({chr(10).join(words)!r})"
    command = CommandLine(argv=(sys.executable, "-c", script))
    with (
        pytest.raises(EngineDiedError) as raised,
        serve(command, served_name="x", log=tmp_path / "log"),
    ):
        pass
    failure = failure_of(raised.value)
    assert failure.kind is FailureKind.OUT_OF_MEMORY
    first, dots, *_, last = (failure.log_tail or "").splitlines()
    assert (first, dots, last) == (words[1], "…", words[-1])


def test_an_engine_that_dies_while_starting_ends_the_prefetch(tmp_path: Path) -> None:
    steps = Steps()
    command = CommandLine(argv=(sys.executable, "-c", "raise SystemExit(3)"))
    with (
        pytest.raises(EngineDiedError, match="exit status 3"),
        serve(command, served_name="x", log=tmp_path / "log", maps=[tmp_path], prefetch=steps),
    ):
        pass
    assert steps.seen == [[tmp_path], "over"]
