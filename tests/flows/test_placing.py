"""On a host with GPUs a model is placed: as predicted while its candidates are measured, then as is measured best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from trials import trial

from blocks.candidates.gguf_bench import GgufBench
from blocks.engine.bench import EngineBench
from flows.placing import ALL_LAYERS, find_space, footprint_of, gpu_sizes
from flows.tune_serving import TuningRequest, tune_serving
from tasks.batching.models import Limits, Run
from tasks.core.facts import Gpu
from tasks.core.gpus import HostGpu, choose_gpus
from tasks.core.model_shape import read_model_shape
from tasks.core.serving import ServingConfig
from tasks.core.spec import CandidateFormat, EngineKind, Hardware, Objectives, Tuning
from tasks.engines.catalogue import get_engine
from tasks.quantization.models import Trial
from tasks.quantization.sizes import file_bytes
from tasks.quantization.source import read_source

F16, Q8_0 = CandidateFormat.F16, CandidateFormat.Q8_0
LIMITS = Limits(memory_bytes=10**9, max_batch=8)
Gpus = Callable[..., None]


@pytest.fixture
def tiny(repository: Path) -> Path:
    return repository / "examples" / "tiny" / "model"


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Gpus:
    def have(*sizes: int | None) -> None:
        found = [
            HostGpu(index, Gpu(name="GPU", compute_capability="9.0", memory_bytes=size))
            for index, size in enumerate(sizes)
        ]
        for module in ("flows.placing", "flows.tune_serving", "flows.candidate_bench"):
            monkeypatch.setattr(f"{module}.gpus_in_use", partial(choose_gpus, found))

    return have


def test_the_largest_gpus_are_used_and_those_that_tell_no_memory_are_left_out(gpus: Gpus) -> None:
    gpus(8, 24, None, 80)
    assert [gpu_sizes(Hardware(gpus=count)) for count in (0, 1, 3, 4)] == [
        (),
        (80,),
        (80, 24, 8),
        (80, 24, 8),
    ]


def test_a_file_is_layers_output_and_what_stays_on_the_host(tiny: Path) -> None:
    shape = read_model_shape(tiny)
    for form in (F16, Q8_0):
        found = footprint_of(tiny, form, get_engine(EngineKind.LLAMA_CPP).card, 512)
        on_gpus = found.layers * found.layer_bytes + found.output_bytes
        whole = file_bytes(read_source(tiny, shape), shape, form)
        assert 0.85 * whole < on_gpus < whole, "the vocabulary's words are what is left"
        assert found.output_bytes >= shape.vocabulary * shape.hidden
    assert found.kv_bytes == 512 * 2 * shape.kv_heads * shape.head_dim * 2


def test_an_engine_is_asked_by_the_knob_that_its_card_names(tiny: Path, gpus: Gpus) -> None:
    gpus(80 * 2**30, 24 * 2**30)
    knobs = {}
    for kind in (EngineKind.LLAMA_CPP, EngineKind.VLLM, EngineKind.TRANSFORMERS):
        card = get_engine(kind).card
        footprint = footprint_of(tiny, CandidateFormat.F16, card, 512)
        space = find_space(card, Hardware(gpus=2), footprint, LIMITS, 0.9)
        without = find_space(card, Hardware(gpus=0), footprint, LIMITS, 0.9)
        knobs[kind.value] = [one and (one.knob, one.batched_tokens.default) for one in (space, without)]
        assert (without and without.batched_tokens) == (space and space.batched_tokens)
    assert knobs == {
        "llama.cpp": [("offload", 2048), (None, 2048)],
        "vllm": [("tensor_parallel", 2048), (None, 2048)],
        "transformers": [None, None],
    }
    large = find_space(get_engine(EngineKind.VLLM).card, Hardware(gpus=1), footprint, LIMITS, 0.9)
    assert large is not None
    assert large.batched_tokens.default == 8192


Engine = Callable[[Callable[[ServingConfig], int], int], list[ServingConfig]]


@pytest.fixture
def engine(tiny: Path, slipway_home: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Stands in the engine's place, with so much memory at its peak: what candidates were measured in."""
    shape = read_model_shape(tiny)

    def install(peak_bytes: Callable[[ServingConfig], int], most: int) -> list[ServingConfig]:
        tried: list[ServingConfig] = []

        def convert(_: GgufBench, worker: Path, model_dir: Path, form: CandidateFormat, out: Path) -> None:
            with out.open("wb") as file:
                file.truncate(file_bytes(read_source(model_dir, shape), shape, form))

        def try_candidate(
            bench: GgufBench,
            model: Path,
            log: Path,
            *,
            form: CandidateFormat,
            slots: int,
            window: int,
            **_: Any,
        ) -> Trial:
            asked = bench.config.model_copy(update={"batch": slots, "context": window + 8})
            tried.append(bench.place(form, asked))
            return trial(-3.0, 100.0)

        def probe(
            _: EngineBench, model: Path, config: ServingConfig, log: Path, *, runs: int, **__: Any
        ) -> Sequence[Run]:
            if peak_bytes(config) > most:
                return [Run(batch=config.batch, oom=True)]
            found = Run(
                batch=config.batch,
                peak_bytes=peak_bytes(config),
                throughput=100.0 * config.batch / max(1, shape.layers + 2 - config.gpu_layers),
                latency_ms={"ttft_p95": 1.0, "tpot_p95": 1.0},
            )
            return [found] * runs

        monkeypatch.setattr(GgufBench, "convert", convert)
        monkeypatch.setattr(GgufBench, "try_candidate", try_candidate)
        monkeypatch.setattr(EngineBench, "probe", probe)
        return tried

    return install


def request(model_dir: Path) -> TuningRequest:
    return TuningRequest(
        name="large",
        engine=EngineKind.LLAMA_CPP,
        python_path=Path("/engine/bin/python"),
        environment_digest="sha256:" + "e" * 64,
        model_dir=model_dir,
        model_digest="sha256:" + "d" * 64,
        tuning=Tuning(candidates=(F16,), context=128, max_batch=2),
        objectives=Objectives(memory_fraction=0.9),
        hardware=Hardware(cpus=1, gpus=1, memory=10**9),
    )


@pytest.mark.server
def test_a_model_larger_than_the_gpu_is_tuned(tiny: Path, gpus: Gpus, engine: Engine) -> None:
    gpus(5_000_000)
    shape = read_model_shape(tiny)
    whole = file_bytes(read_source(tiny, shape), shape, F16)
    assert whole > 5_000_000
    each = whole // (shape.layers + 1)
    tried = engine(lambda config: 300_000 + config.gpu_layers * each + 10_000 * config.batch, 5_000_000)
    outcome = tune_serving(request(tiny))
    (served,) = tried
    assert 1 <= served.gpu_layers < shape.layers + 1
    assert outcome.batching is not None
    result = outcome.batching.result
    assert result.batch == 2
    assert 1 <= result.config.gpu_layers < shape.layers + 1
    assert sum(one.chosen for one in result.placements) == 1
    assert result.chosen is not None
    assert (result.chosen.peak_bytes or 0) <= 4_500_000
    assert result.config.gpu_indices == (0,)
    gpus(1000, 5_000_000)  # a host of that kind on which another one is the largest
    again = tune_serving(request(tiny)).batching
    assert again is not None
    assert again.cached
    assert again.result.config == result.config.model_copy(update={"gpu_indices": (1,)})


@pytest.mark.server
def test_a_gpu_that_shares_the_hosts_memory_gets_all_layers(tiny: Path, gpus: Gpus, engine: Engine) -> None:
    """GB10 tells no memory of its own: what the host has is the bound."""
    gpus(None)
    tried = engine(lambda config: 800_000_000 + 60_000_000 * config.batch, 10**9)
    outcome = tune_serving(request(tiny))
    (served,) = tried
    assert served.gpu_layers == ALL_LAYERS
    assert outcome.batching is not None
    result = outcome.batching.result
    assert (result.config.gpu_layers, result.batch) == (ALL_LAYERS, 1)
    assert result.limits.memory_bytes == 900_000_000
