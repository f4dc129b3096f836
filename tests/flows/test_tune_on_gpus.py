"""The tuning flow on a host with a GPU, as far as it can be shown without one."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from trials import trial

from blocks.candidates.gguf_bench import GgufBench
from blocks.engine.bench import EngineBench
from blocks.host import host as host_module
from flows.tune_serving import tune_serving
from tasks.batching.models import ProbeRequest, Run
from tasks.core.facts import Gpu
from tasks.core.gpus import HostGpu, choose_gpus
from tasks.core.serving import FITTED, ServingConfig
from tasks.core.spec_kinds import CandidateFormat, EngineKind
from tasks.core.spec_sections import Hardware, Objectives, Tuning
from tasks.quantization.models import Candidate, Trial, TrialPlan
from tasks.tuning.models import TuningRequest

pytestmark = pytest.mark.server

F16, Q8_0 = CandidateFormat.F16, CandidateFormat.Q8_0


class Host:
    """GPUs of these sizes in bytes, and how often they were looked at."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.looks = 0

    def gpus_in_use(self, count: int) -> tuple[HostGpu, ...]:
        self.looks += 1
        found = [
            HostGpu(index, Gpu(name="GPU", compute_capability="9.0", memory_bytes=size))
            for index, size in enumerate(self.sizes)
        ]
        return choose_gpus(found, count)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    found = Host()
    monkeypatch.setattr("flows.tune_serving.gpus_in_use", found.gpus_in_use)
    return found


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[ServingConfig]:
    """A stand-in for the engine, which fits fewer layers the more it serves: the configurations it was started with."""
    configs: list[ServingConfig] = []

    def convert(_: GgufBench, worker: Path, model_dir: Path, form: CandidateFormat, out: Path) -> None:
        with out.open("wb") as file:
            file.truncate(1000)

    def try_candidate(bench: GgufBench, candidate: Candidate, plan: TrialPlan) -> Trial:
        configs.append(bench.config)
        return trial(-3.0, 200.0 if candidate.format is Q8_0 else 100.0)

    def probe(_: EngineBench, request: ProbeRequest) -> Sequence[Run]:
        config = request.config
        configs.append(config)
        run = Run(
            batch=config.batch,
            peak_bytes=4_000_000,
            throughput=100.0 * config.batch,
            latency_ms={"ttft_p95": 1.0, "tpot_p95": 1.0},
            gpu_layers=5 - config.batch if config.gpu_layers == FITTED else None,
        )
        return [run] * request.runs

    monkeypatch.setattr(GgufBench, "convert", convert)
    monkeypatch.setattr(GgufBench, "compare_weights", lambda *_: {"w": 0.001})
    monkeypatch.setattr(GgufBench, "try_candidate", try_candidate)
    monkeypatch.setattr(EngineBench, "probe", probe)
    return configs


@pytest.fixture
def asked(repository: Path, slipway_home: Path) -> TuningRequest:
    text = repository / "examples" / "tiny" / "heldout.txt"
    return TuningRequest(
        name="placed",
        engine=EngineKind.LLAMA_CPP,
        python_path=Path("/engine/bin/python"),
        environment_digest="sha256:" + "e" * 64,
        model_dir=repository / "examples" / "tiny" / "model",
        model_digest="sha256:" + "d" * 64,
        tuning=Tuning(
            candidates=(F16, Q8_0), quality_text=text, quality_tokens=256, context=128, max_batch=2
        ),
        objectives=Objectives(quality_tolerance=0.05, memory_fraction=0.9),
        hardware=Hardware(cpus=1, gpus=1, memory=10**9),
    )


def test_the_engine_fits_its_layers_and_the_release_keeps_them(
    asked: TuningRequest, host: Host, served: list[ServingConfig]
) -> None:
    host.sizes = [5_000_000]
    outcome = tune_serving(asked)
    assert [config.gpu_layers for config in served[:2]] == [FITTED] * 2, "candidates"
    assert outcome.batching is not None
    result = outcome.batching.result
    assert (result.batch, result.config.gpu_layers) == (2, 3)
    assert [config.gpu_layers for config in served if config.batch == 2] == [FITTED, 3], "as the release"
    assert result.limits.memory_bytes == 4_500_000
    assert result.config.gpu_indices == (0,)

    host.sizes = [1000, 5_000_000]  # a host of that kind on which another one is the largest
    again = tune_serving(asked).batching
    assert again is not None
    assert again.cached
    assert again.result.config == result.config.model_copy(update={"gpu_indices": (1,)})


def test_host_and_model_are_read_once(
    asked: TuningRequest, host: Host, served: list[ServingConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two candidates and a search over batch and steps decide on one look."""
    host.sizes = [5_000_000]
    reads: Counter[str] = Counter()
    memory = host_module.memory_bytes

    def count_memory() -> int:
        reads["memory"] += 1
        return memory()

    def count_open(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).startswith(f"{asked.model_dir}/") and watching:
            reads[Path(arguments[0]).name] += 1

    monkeypatch.setattr("flows.tune_serving.memory_bytes", count_memory)
    watching = [True]
    sys.addaudithook(count_open)  # for as long as this process lives
    outcome = tune_serving(asked)
    watching.clear()
    assert outcome.batching is not None
    assert len(served) > 4
    files = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
    assert reads == dict.fromkeys((*files, "memory"), 1)
    assert host.looks == 1
