"""The loop around the search, and what it tells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from figures import without_figures
from inline_snapshot import snapshot

from tasks.batching import report
from tasks.batching.apply import find_batch
from tasks.batching.models import BatchingRequest, BatchingResult, Devices, Fit, Footprint, Limits, Run, Space
from tasks.batching.saturation import Saturation
from tasks.core.cancellation import begin
from tasks.core.errors import StageCancelledError
from tasks.core.progress import listen
from tasks.core.serving import ServingConfig
from tasks.core.spec import LoadKind, TuningLoad
from tasks.core.verdicts import ChoiceVerdict
from tasks.engines.failures import Failure, FailureKind

DIED = Failure(
    kind=FailureKind.CRASHED,
    what="the engine died while serving (killed by SIGABRT)",
    signal="SIGABRT",
    log_tail="GGML_ASSERT(n_tokens > 0) failed",
)


class Bench:
    """A bench that serves up to 8 at once, and fails once."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def probe(
        self,
        model_file: Path,
        config: ServingConfig,
        log: Path,
        *,
        output_tokens: int,
        runs: int,
        load: TuningLoad,
    ) -> Sequence[Run]:
        assert (model_file.name, log.name, output_tokens) == ("model.gguf", "engine.log", 32)
        assert load.kind == "closed"
        self.asked.append((config.batch, runs))
        if config.batch > 8:
            return [Run(batch=config.batch, oom=True)]
        if self.asked.count((2, 1)) == 1 and config.batch == 2:
            return [Run.failing(2, DIED)]
        latency = {"ttft_p50": 9.0, "ttft_p95": 10.0 * config.batch, "tpot_p95": 1.0}
        run = Run(
            batch=config.batch, peak_bytes=10**8, throughput=100.0 * config.batch**0.9, latency_ms=latency
        )
        return [run] * runs


def request(**limits: object) -> BatchingRequest:
    bounds = {"memory_bytes": 10**9, "latency_ms": {"ttft_p95": 500.0}, "max_batch": 64} | limits
    return BatchingRequest(
        model_file=Path("/candidates/x/model.gguf"),
        config=ServingConfig(served_name="tiny", batch=1, context=256, threads=2),
        output_tokens=32,
        limits=Limits.model_validate(bounds),
    )


def test_the_search_runs_until_it_decides_and_tells_how() -> None:
    lines: list[str] = []
    listen(lambda stage, line: lines.append(f"{stage}: {line}"))
    bench = Bench()
    result = find_batch(request(), bench, None)
    assert result.verdict == ChoiceVerdict.CHOSEN
    assert (result.batch, result.config.batch, result.oom_hits) == (8, 8, 2)
    assert lines == snapshot(
        [
            "batching: measuring batch 1",
            "batching: batch 1: 100 tokens/s, TTFT p95 10.0 ms, TPOT p95 1.0 ms",
            "batching: measuring batch 2",
            "batching: batch 2: crashed: the engine died while serving (killed by SIGABRT)",
            "batching: measuring batch 2",
            "batching: batch 2: 187 tokens/s, TTFT p95 20.0 ms, TPOT p95 1.0 ms",
            "batching: measuring batch 4",
            "batching: batch 4: 348 tokens/s, TTFT p95 40.0 ms, TPOT p95 1.0 ms",
            "batching: measuring batch 8",
            "batching: batch 8: 650 tokens/s, TTFT p95 80.0 ms, TPOT p95 1.0 ms",
            "batching: measuring batch 16",
            "batching: batch 16: out of memory",
            "batching: measuring batch 12",
            "batching: batch 12: out of memory",
            "batching: measuring batch 8",
            "batching: batch 8 (run 4 of 4): 650 tokens/s, TTFT p95 80.0 ms, TPOT p95 1.0 ms",
        ]
    )
    assert report.headline(result) == snapshot("batch 8: 650 tokens/s, TPOT p95 1.0 ms, TTFT p95 80.0 ms")
    assert {name: (number.value, number.unit) for name, number in report.numbers(result).items()} == snapshot(
        {
            "batch": (8.0, "1"),
            "throughput": (649.8019170849884, "token/s"),
            "peak_bytes": (100000000.0, "byte"),
            "tpot_p95_ms": (1.0, "ms"),
            "ttft_p50_ms": (9.0, "ms"),
            "ttft_p95_ms": (80.0, "ms"),
        }
    )
    assert without_figures(report.markdown(result)) == snapshot("""\
# Batching: chosen

**batch 8**: the most throughput of 6 sizes; batch 12 out of memory.

| batch | runs | tokens/s | peak memory | TPOT p95 | TTFT p95 |
|---:|---:|---:|---:|---:|---:|
| 1 | 1 | 100 | 100.0 MB | 1.0 ms | 10.0 ms |
| 2 | 1 | 187 | 100.0 MB | 1.0 ms | 20.0 ms |
| 4 | 1 | 348 | 100.0 MB | 1.0 ms | 40.0 ms |
| **8** | 5 | 650 | 100.0 MB | 1.0 ms | 80.0 ms |
| 12 | 1 | - | - | - | - |
| 16 | 1 | - | - | - | - |

## Sizes that will not do

- batch 12: out of memory
- batch 16: out of memory

## What happened once and not again

- batch 2: crashed: the engine died while serving (killed by SIGABRT)

## Last words

batch 2:

```
GGML_ASSERT(n_tokens > 0) failed
```

![Throughput of all sequences](data:image/svg+xml;base64,…)

## Bounds

- peak memory at most 1.0 GB
- TTFT p95 at most 500 ms

5% of throughput may be given up for a smaller size. A sequence has 256 tokens of context.
""")
    assert BatchingResult.model_validate(result.model_dump(mode="json")) == result


def test_an_open_loop_is_told_by_its_rate() -> None:
    lines: list[str] = []
    listen(lambda stage, line: lines.append(line))
    behind = Saturation(growth=0.4, later=1.0, backlog=31, begun=1.0)

    class Rated:
        def probe(self, model_file: Path, config: ServingConfig, log: Path, **asked: Any) -> Sequence[Run]:
            assert asked["load"].rate == 8
            run = Run(
                batch=config.batch,
                peak_bytes=10**8,
                throughput=256.0,
                latency_ms={"ttft_p95": 900.0 / config.batch},
                saturation=behind if config.batch < 4 else behind.model_copy(update={"growth": 0.0}),
            )
            return [run] * asked["runs"]

    load = TuningLoad(kind=LoadKind.OPEN, rate=8)
    result = find_batch(request(rate_per_s=8).model_copy(update={"load": load}), Rated(), None)
    assert (result.batch, [size.fit for size in result.sizes]) == (
        4,
        [Fit.SATURATED, Fit.SATURATED, Fit.SATURATED, Fit.FITS],
    )
    assert lines[1] == "batch 1: 256 tokens/s, TTFT p95 900.0 ms, TPOT not measured, saturated"
    page = report.markdown(result)
    assert (
        "- batch 2: does not keep up with 8 requests/s: waits grow by 0.40 s a second, 31 requests were unanswered"
        in page
    )
    assert "- keeps up with 8 requests/s" in page
    assert BatchingResult.model_validate(result.model_dump(mode="json")) == result


def test_how_busy_gpus_were_is_told_where_it_is_known() -> None:
    class OnGpus:
        def probe(self, *_: object, **asked: Any) -> Sequence[Run]:
            busy = (0.2, 0.6, 0.5, 0.6, None)
            return [
                Run(
                    batch=1,
                    peak_bytes=10**8,
                    throughput=256.0,
                    latency_ms={"ttft_p95": 9.0},
                    sm_activity=share,
                )
                for share in busy[: asked["runs"]]
            ]

    result = find_batch(request(max_batch=1), OnGpus(), None)
    assert result.chosen is not None
    assert result.chosen.sm_activity == pytest.approx(0.5)
    assert report.numbers(result)["sm_activity"].value == pytest.approx(0.5)
    assert "| **1** | 5 | 256 | 100.0 MB | 9.0 ms | 50% |" in report.markdown(result)


class OnAGpu:
    """A GPU that the output layer and 3 of 4 layers fit on, where all were predicted to."""

    def probe(self, model_file: Path, config: ServingConfig, log: Path, **asked: Any) -> Sequence[Run]:
        assert config.gpus == 0
        assert config.memory_fraction == 0.8
        peak = 200 * config.gpu_layers + 10 * config.batch
        if peak > 1000:
            return [Run(batch=config.batch, oom=True)]
        throughput = 100.0 * config.batch / (6 - config.gpu_layers)
        return [
            Run(batch=config.batch, peak_bytes=peak, throughput=throughput, latency_ms={"ttft_p95": 9.0})
        ] * asked["runs"]


def test_where_a_model_can_be_placed_in_several_ways_they_are_searched_too() -> None:
    lines: list[str] = []
    listen(lambda stage, line: lines.append(line))
    asked = request(memory_bytes=900, max_batch=2)
    space = Space(
        knob="offload",
        footprint=Footprint(layers=4, layer_bytes=150, output_bytes=200, kv_bytes=1, heads=2, kv_heads=1),
        devices=Devices(gpu_bytes=(1000,), host_bytes=10**9),
        limits=asked.limits,
    )
    config = asked.config.model_copy(update={"memory_fraction": 0.8})
    result = find_batch(asked.model_copy(update={"space": space, "config": config}), OnAGpu(), None)
    assert (result.config.gpu_layers, result.config.batch, result.config.context) == (4, 2, 256)
    assert lines == snapshot(
        [
            "measuring all 5 layers on the GPUs, batch 1",
            "all 5 layers on the GPUs, batch 1: out of memory",
            "measuring 4 of 5 layers on the GPUs, batch 1",
            "4 of 5 layers on the GPUs, batch 1: 50 tokens/s, TTFT p95 9.0 ms, TPOT not measured",
            "measuring 4 of 5 layers on the GPUs, batch 2",
            "4 of 5 layers on the GPUs, batch 2: 100 tokens/s, TTFT p95 9.0 ms, TPOT not measured",
            "measuring 4 of 5 layers on the GPUs, batch 2",
            "4 of 5 layers on the GPUs, batch 2 (run 4 of 4): 100 tokens/s, TTFT p95 9.0 ms, TPOT not measured",
        ]
    )
    assert report.headline(result) == snapshot(
        "batch 2, 4 of 5 layers on the GPUs: 100 tokens/s, TTFT p95 9.0 ms"
    )
    assert report.numbers(result)["gpu_layers"].value == 4
    page = report.markdown(result)
    assert page[page.index("## Placements") : page.index("| batch | runs |")] == snapshot("""\
## Placements

| placement | sizes | batch | tokens/s | peak memory |
|---|---:|---:|---:|---:|
| all 5 layers on the GPUs | 1 | - | - | - |
| **4 of 5 layers on the GPUs** | 2 | 2 | 100 | 0.0 MB |

- all 5 layers on the GPUs: not even batch 1 will do: out of memory

## Batch sizes with 4 of 5 layers on the GPUs

""")
    assert BatchingResult.model_validate(result.model_dump(mode="json")) == result


def test_a_model_that_fits_nowhere_is_not_served_at_all() -> None:
    asked = request(memory_bytes=900)
    space = Space(
        knob="offload",
        footprint=Footprint(layers=4, layer_bytes=500, output_bytes=950, kv_bytes=1, heads=2, kv_heads=1),
        devices=Devices(gpu_bytes=(1000,), host_bytes=1000),
        limits=asked.limits,
    )
    result = find_batch(asked.model_copy(update={"space": space}), Bench(), None)
    assert result.verdict == ChoiceVerdict.NONE
    assert result.reason.startswith("it is predicted to fit in no way: ")
    assert (result.sizes, result.placements) == ((), ())
    assert report.markdown(result).startswith("# Batching: none\n\nit is predicted to fit in no way")


def test_none_is_told_too() -> None:
    result = find_batch(request(memory_bytes=10**6), Bench(), 4)
    assert result.verdict == ChoiceVerdict.NONE
    assert report.headline(result) == "not even batch 1 will do: needs 100 MB of memory, 1 MB may be used"
    assert report.numbers(result) == {}
    assert "Started from batch 4" in report.markdown(result)


def test_a_cancelled_search_stops() -> None:
    begin().cancel("compatibility says block")
    try:
        with pytest.raises(StageCancelledError, match="compatibility says block"):
            find_batch(request(), Bench(), None)
    finally:
        begin()
