"""Arguments of a spec, asked for and tried in the engine's real environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from blocks.engine.bench import EngineBench
from blocks.engine.engine_help import check_by_help
from tasks.core.errors import EngineDiedError, SpecError
from tasks.core.progress import listen
from tasks.core.serving import ServingConfig
from tasks.core.spec_kinds import EngineKind
from tasks.engines.base import Engine
from tasks.engines.card import EngineCard, read_card
from tasks.engines.llama_cpp import LlamaCpp
from tasks.engines.transformers import Transformers

pytestmark = pytest.mark.engine

EARLIER = "2026.6.9713"
"""A release of xllamacpp that lacks some parameters of the one that the card pins."""
OWN = {"model", "alias", "host", "port", "slots", "context", "threads", "gpu-layers", "memory-fraction",
       "batch-tokens", "micro-batch-tokens", "chat-template", "reasoning-format", "task", "pooling", "help"}  # fmt: skip
"""Options of the worker that Slipway's command sets."""


@pytest.fixture(scope="module")
def earlier_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with that release."""
    uv, python = Path(sys.executable).with_name("uv"), tmp_path_factory.mktemp("earlier") / "bin" / "python"
    subprocess.run(
        [uv, "venv", "--quiet", "--allow-existing", "--python", "3.11", python.parent.parent], check=True
    )
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, f"xllamacpp=={EARLIER}"], check=True)
    return python


def test_the_card_lists_what_the_worker_reads(engine_python: Path) -> None:
    command = LlamaCpp().help_command(engine_python)
    assert command is not None
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    listed = {line.split()[0].removeprefix("--") for line in shown.splitlines() if line.startswith("  --")}
    assert listed - OWN == set(read_card(EngineKind.LLAMA_CPP).arguments)


def test_an_engine_that_knows_the_arguments_is_content(engine_python: Path) -> None:
    given: dict[str, Any] = {
        "cache-type-k": "q8_0",
        "flash-attn": "on",
        "mlock": True,
        "tensor-split": "1,2",
        "temp": -0.5,
    }
    check_by_help(LlamaCpp(), engine_python, given, {"A": "1"})


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"cache-type-q": "q8_0"}, r"engine_args\.cache-type-q: llama\.cpp 1\.0 has no argument"),
    "unknown beside a wrong value": (
        {"abc": 1, "seed": "x"},
        r"engine_args\.abc: llama\.cpp 1\.0 has no argument",
    ),
    "a value of another type": (
        {"seed": "x"},
        "llama.cpp refuses them: argument --seed: invalid int value: 'x'",
    ),
    "no such value": (
        {"cache-type-k": "q99"},
        "refuses them: argument --cache-type-k: 'q99' is not one of f32",
    ),
    "a value for a flag": ({"mlock": 1}, "refuses them: argument --mlock: ignored explicit argument '1'"),
    "no value": ({"seed": True}, "refuses them: argument --seed: expected one argument"),
    "two that exclude each other": ({"mlock": True, "no-mmap": True}, "not allowed with argument --mlock"),
    "an abbreviation": ({"cache-type-": "q8_0"}, "has no argument --cache-type-"),
    "too many shares": ({"tensor-split": ",".join("1" * 999)}, "argument --tensor-split: at most"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_what_an_engine_does_not_take_is_told_by_its_help(case: str, engine_python: Path) -> None:
    given, said = WRONG[case]
    with pytest.raises(SpecError, match=said):
        check_by_help(LlamaCpp(), engine_python, given, {}, "1.0")


def test_another_release_knows_other_arguments(earlier_python: Path) -> None:
    check_by_help(LlamaCpp(), earlier_python, {"cache-type-k": "q8_0"}, {}, EARLIER)
    with pytest.raises(SpecError, match=rf"llama\.cpp {EARLIER} has no argument --mlock"):
        check_by_help(LlamaCpp(), earlier_python, {"mlock": True}, {}, EARLIER)


class Silent(Engine):
    """Its program is not there, or says nothing."""

    def __init__(self, program: str) -> None:
        super().__init__("llama.cpp")
        self.program = program

    @property
    def card(self) -> EngineCard:
        return super().card.model_copy(update={"help": (self.program,)})


@pytest.mark.parametrize("program", ["no-such-program", "true"])
def test_an_engine_without_a_help_is_left_to_its_first_start(program: str, tmp_path: Path) -> None:
    (tmp_path / "true").symlink_to("/bin/true")
    said: list[str] = []
    listen(lambda _, line: said.append(line))
    check_by_help(Silent(program), tmp_path / "python", {"abc": 1}, {})
    assert said[-1] == "llama.cpp does not list its arguments: its first start will tell"


def test_the_engine_serves_by_the_arguments(
    engine_python: Path, random_ggufs: tuple[Path, Path], tmp_path: Path
) -> None:
    config = ServingConfig(
        served_name="test",
        batch=2,
        context=128,
        threads=1,
        engine_args={"temp": 0.25, "top-k": 7, "flash-attn": "on", "cache-type-v": "bf16"},
        engine_env={"SOME_NAME": "some value"},
    )
    bench = EngineBench(engine=LlamaCpp(), python=engine_python)
    with bench.serve(random_ggufs[0], config, tmp_path / "log") as served:
        shown = httpx.get(f"{served.base_url}/props", trust_env=False).json()
        words = b"\0".join(
            file.read_bytes()
            for file in Path("/proc").glob("[0-9]*/environ")
            if _is_child_of(file, served.guard_pid)
        )
    params = shown["default_generation_settings"]["params"]
    assert (params["temperature"], params["top_k"]) == (0.25, 7)
    assert b"SOME_NAME=some value" in words


def _is_child_of(file: Path, guard: int) -> bool:
    status = file.with_name("status").read_text()
    return f"PPid:\t{guard}\n" in status


def test_a_value_that_only_the_model_refuses_ends_the_start(
    engine_python: Path, random_ggufs: tuple[Path, Path], tmp_path: Path
) -> None:
    config = ServingConfig(
        served_name="test",
        batch=1,
        context=128,
        threads=1,
        engine_args={"flash-attn": "off", "cache-type-v": "q8_0"},
    )
    bench = EngineBench(engine=LlamaCpp(), python=engine_python)
    with pytest.raises(EngineDiedError), bench.serve(random_ggufs[0], config, tmp_path / "log"):
        pass


def test_transformers_serve_is_asked_too(transformers_python: Path) -> None:
    check_by_help(
        Transformers(), transformers_python, {"attn-implementation": "sdpa", "no-enable-cors": True}, {}
    )
    with pytest.raises(SpecError, match=r"Transformers serve 5 has no argument --cb-num-block ") as caught:
        check_by_help(Transformers(), transformers_python, {"cb-num-block": 5}, {}, "5")
    assert caught.value.fix == "did you mean 'cb-num-blocks'?"
