"""A candidate whose layers run out of the GPUs' memory is measured with fewer of them there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from blocks.candidates.gguf_bench import GgufBench
from blocks.engine.bench import EngineBench
from blocks.engine.process import RunningEngine
from tasks.core.errors import EngineDiedError, EngineError
from tasks.core.serving import ServingConfig
from tasks.core.spec import CandidateFormat
from tasks.engines.llama_cpp import LlamaCpp

CONFIG = ServingConfig(served_name="slipway-tuning", batch=1, context=256, threads=1)


@dataclass(frozen=True)
class Ended(EngineBench):
    """An engine that ends before it serves, and says why."""

    said: str = ""
    asked: list[int] = field(default_factory=list)

    @contextlib.contextmanager
    def serve(self, model: Path, config: ServingConfig, log: Path) -> Iterator[RunningEngine]:
        self.asked.append(config.gpu_layers)
        raise EngineDiedError("it died", status=1, ready=False, kernel_kills=0, detail=self.said)
        yield


def tried(tmp_path: Path, said: str, layers: int) -> list[int]:
    bench = Ended(engine=LlamaCpp(), python=Path("/engine/bin/python"), said=said)
    placed = GgufBench(
        bench, CONFIG, place=lambda _, config: config.model_copy(update={"gpu_layers": layers})
    )
    with pytest.raises(EngineError, match="it died"):
        placed.try_candidate(
            tmp_path / "m.gguf",
            tmp_path / "log",
            form=CandidateFormat.Q8_0,
            text=None,
            tokens=64,
            window=64,
            slots=1,
        )
    return bench.asked


def test_fewer_layers_are_tried_until_none_is_left(tmp_path: Path) -> None:
    assert tried(tmp_path, "ggml_cuda: cudaMalloc failed: out of memory", 10) == [10, 7, 4, 2, 1]


def test_an_engine_that_died_of_something_else_is_not_tried_again(tmp_path: Path) -> None:
    assert tried(tmp_path, "illegal instruction", 10) == [10]


def test_without_a_gpu_there_are_no_layers_to_take_back(tmp_path: Path) -> None:
    assert tried(tmp_path, "std::bad_alloc", 0) == [0]
