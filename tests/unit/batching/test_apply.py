"""The loop around the search, and what it tells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from figures import without_figures
from inline_snapshot import snapshot

from tasks.batching import report
from tasks.batching.apply import find_batch
from tasks.batching.memory_share import smaller_share
from tasks.batching.models import BatchingRequest, BatchingResult, Fit, Limits, ProbeRequest, Run
from tasks.batching.saturation import Saturation
from tasks.core.cancellation import begin
from tasks.core.errors import StageCancelledError
from tasks.core.progress import listen
from tasks.core.serving import FITTED, ServingConfig
from tasks.core.spec_kinds import LoadKind
from tasks.core.spec_sections import TuningLoad
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

    def probe(self, request: ProbeRequest) -> Sequence[Run]:
        config, runs = request.config, request.runs
        assert (request.model_file.name, request.log.name) == ("model.gguf", "engine.log")
        assert (request.output_tokens, request.load.kind) == (32, "closed")
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

## Sizes that are not good enough

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
        def probe(self, request: ProbeRequest) -> Sequence[Run]:
            config = request.config
            assert request.load.rate == 8
            run = Run(
                batch=config.batch,
                peak_bytes=10**8,
                throughput=256.0,
                latency_ms={"ttft_p95": 900.0 / config.batch},
                saturation=behind if config.batch < 4 else behind.model_copy(update={"growth": 0.0}),
            )
            return [run] * request.runs

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
        def probe(self, request: ProbeRequest) -> Sequence[Run]:
            busy = (0.2, 0.6, 0.5, 0.6, None)
            return [
                Run(
                    batch=1,
                    peak_bytes=10**8,
                    throughput=256.0,
                    latency_ms={"ttft_p95": 9.0},
                    sm_activity=share,
                )
                for share in busy[: request.runs]
            ]

    result = find_batch(request(max_batch=1), OnGpus(), None)
    assert result.chosen is not None
    assert result.chosen.sm_activity == pytest.approx(0.5)
    assert report.numbers(result)["sm_activity"].value == pytest.approx(0.5)
    assert "| **1** | 5 | 256 | 100.0 MB | 9.0 ms | 50% |" in report.markdown(result)


def on_gpu(**config: object) -> BatchingRequest:
    asked = request(memory_bytes=10**9, max_batch=512, request_tokens=100, taken_at_start=True)
    return asked.model_copy(update={"config": asked.config.model_copy(update=config)})


class FittingEngine:
    """llama.cpp, which puts fewer layers on the GPU the more sequences it is to serve."""

    def __init__(self, holds: float = 1.0) -> None:
        self.holds = holds
        self.asked: list[tuple[int, int]] = []

    def probe(self, request: ProbeRequest) -> Sequence[Run]:
        batch, layers = request.config.batch, request.config.gpu_layers
        self.asked.append((batch, layers))
        run = Run(
            batch=batch,
            peak_bytes=int(self.holds * request.config.memory_fraction * 10**9),
            latency_ms={"ttft_p95": 9.0},
            throughput=100.0 * min(batch, 4) - batch,
            gpu_layers=41 - batch if layers == FITTED else None,
        )
        return [run] * request.runs


def test_layers_are_those_that_the_engine_fitted_at_the_chosen_size() -> None:
    engine = FittingEngine()
    result = find_batch(on_gpu(gpu_layers=FITTED), engine, None)
    assert engine.asked == [(1, FITTED), (2, FITTED), (4, FITTED), (8, FITTED), (16, FITTED), (4, 37)]
    assert (result.batch, result.config.gpu_layers) == (4, 37)
    assert report.headline(result) == snapshot(
        "batch 4, 37 layers on the GPUs: 396 tokens/s, TTFT p95 9.0 ms"
    )
    assert report.numbers(result)["gpu_layers"].value == 37
    heads, rows = report.why_table(result)
    assert heads[4:6] == ("TTFT p95", "layers on GPUs")
    assert [row[5] for row in rows] == ["40", "39", "37", "33", "25"]
    assert BatchingResult.model_validate(result.model_dump(mode="json")) == result


def test_an_engine_that_holds_more_than_may_be_used_is_fitted_anew() -> None:
    engine = FittingEngine(holds=1.15)
    result = find_batch(on_gpu(gpu_layers=FITTED, memory_fraction=0.89), engine, None)
    assert engine.asked[:3] == [(1, FITTED), (1, FITTED), (2, FITTED)]
    assert result.config.memory_fraction == 0.86
    assert result.chosen is not None
    assert (result.chosen.peak_bytes or 0) <= 10**9


class PagedEngine:
    """vLLM, with room for so many tokens; others hold a part of the GPU's memory."""

    def __init__(self, kv_tokens: int | None, free: float = 1.0) -> None:
        self.kv_tokens, self.free = kv_tokens, free
        self.asked: list[tuple[int, float]] = []

    def probe(self, request: ProbeRequest) -> Sequence[Run]:
        batch, share = request.config.batch, request.config.memory_fraction
        self.asked.append((batch, share))
        if share > self.free:
            what = f"ValueError: Free memory on device cuda:0 ({80 * self.free:.2f}/80.0 GiB) on startup is less than"
            return [Run.failing(batch, Failure(kind=FailureKind.OUT_OF_MEMORY, what=what))]
        run = Run(
            batch=batch,
            peak_bytes=9 * 10**8,
            latency_ms={"ttft_p95": 9.0},
            throughput=100.0 * batch,
            preemptions=1 if self.kv_tokens and batch * 100 > self.kv_tokens else 0,
            kv_tokens=self.kv_tokens,
        )
        return [run] * request.runs


def test_the_search_goes_on_at_what_the_engine_says_that_its_cache_holds() -> None:
    """Requests have up to 100 tokens, so that 20,050 are room for 200 of them."""
    engine = PagedEngine(20_050)
    result = find_batch(on_gpu(gpus=1), engine, None)
    assert [batch for batch, _ in engine.asked] == [1, 200, 400, 300, 250, 225, 100, 200]
    assert result.batch == 200
    assert result.chosen is not None
    assert result.chosen.kv_tokens == 20_050


def test_a_size_of_an_earlier_record_comes_before_what_the_cache_holds() -> None:
    engine = PagedEngine(20_050)
    find_batch(on_gpu(gpus=1), engine, 8)
    assert [batch for batch, _ in engine.asked][:2] == [8, 16]


def test_an_engine_takes_less_memory_where_others_hold_a_part_of_it() -> None:
    engine = PagedEngine(None, free=0.7)
    result = find_batch(on_gpu(gpus=1, memory_fraction=0.89), engine, None)
    assert engine.asked[:3] == [(1, 0.89), (1, 0.69), (2, 0.69)]
    assert result.config.memory_fraction == 0.69
    assert result.oom_hits == 0


class ConstantEngine:
    """It holds the same memory whatever share it is told to take."""

    def __init__(self) -> None:
        self.shares: list[float] = []

    def probe(self, request: ProbeRequest) -> Sequence[Run]:
        self.shares.append(request.config.memory_fraction)
        run = Run(
            batch=request.config.batch, peak_bytes=1_020_000_000, latency_ms={"ttft_p95": 9.0}, throughput=1.0
        )
        return [run] * request.runs


def test_an_engine_that_holds_too_much_at_any_share_is_not_asked_for_ever() -> None:
    engine = ConstantEngine()
    result = find_batch(on_gpu(gpus=1, memory_fraction=0.89), engine, None)
    assert result.batch is None
    assert engine.shares[:4] == sorted(engine.shares[:4], reverse=True)
    assert len(set(engine.shares)) == 4, "its own, and three smaller"


SMALL_CACHE = "ValueError: No available memory for the cache blocks"
NO_ROOM = (
    "Free memory on device cuda:0 (56.0/80.0 GiB) on startup is less than desired GPU memory utilization"
)


@pytest.mark.parametrize(
    ("runs", "share"),
    [
        ([Run(batch=1, peak_bytes=1000)], None),
        ([Run(batch=1, peak_bytes=1020)], 0.86),  # it holds 2 % more than may be used
        ([Run(batch=1, peak_bytes=980), Run(batch=1, peak_bytes=1001)], 0.88),
        ([Run(batch=1, oom=True)], None),
        ([Run.failing(1, Failure(kind=FailureKind.OUT_OF_MEMORY, what=NO_ROOM))], 0.69),
        ([Run.failing(1, Failure(kind=FailureKind.OUT_OF_MEMORY, what=SMALL_CACHE))], None),
        ([Run.failing(1, Failure(kind=FailureKind.OUT_OF_MEMORY, what="died", log_tail=NO_ROOM))], 0.69),
    ],
)
def test_the_share_of_memory_follows_what_the_engine_says_and_holds(
    runs: list[Run], share: float | None
) -> None:
    assert smaller_share(0.89, runs, 1000) == share


def test_none_is_told_too() -> None:
    result = find_batch(request(memory_bytes=10**6), Bench(), 4)
    assert result.verdict == ChoiceVerdict.NONE
    assert report.headline(result) == "not even batch 1 works: needs 100 MB of memory, 1 MB may be used"
    assert report.numbers(result) == {}
    assert "Started from batch 4" in report.markdown(result)


def test_a_cancelled_search_stops() -> None:
    begin().cancel("compatibility says block")
    try:
        with pytest.raises(StageCancelledError, match="compatibility says block"):
            find_batch(request(), Bench(), None)
    finally:
        begin()
