"""The choice of a batch size, for people."""

from __future__ import annotations

from tasks.batching.models import BatchingResult, SizeFigures
from tasks.core.figures import bars
from tasks.core.markdown import bullets, page, section, table
from tasks.core.records import Number
from tasks.core.verdicts import StageName


def headline(result: BatchingResult) -> str:
    """The size and what it gives."""
    chosen = result.chosen
    if chosen is None:
        return result.reason
    tail = "".join(f", {words(name)} {chosen.latency_ms[name]:.1f} ms" for name in _p95(chosen))
    return f"batch {chosen.batch}: {chosen.throughput:.0f} tokens/s{tail}"


def numbers(result: BatchingResult) -> dict[str, Number]:
    """Figures of the chosen size."""
    chosen = result.chosen
    if chosen is None:
        return {}
    found = {
        "batch": Number(value=chosen.batch, unit="1"),
        "throughput": Number(value=chosen.throughput, unit="token/s"),
        "peak_bytes": Number(value=chosen.peak_bytes or 0, unit="byte"),
    }
    return found | {f"{name}_ms": Number(value=value, unit="ms") for name, value in chosen.latency_ms.items()}


def markdown(result: BatchingResult) -> str:
    """The artifact: every measured size."""
    names = sorted({name for size in result.sizes for name in size.latency_ms if name.endswith("p95")})
    heads = ("batch", "runs", "tokens/s", "peak memory", *map(words, names))
    bounds = [f"peak memory at most {_size(result.limits.memory_bytes)}"]
    bounds += [f"{words(name)} at most {bound:g} ms" for name, bound in result.limits.latency_ms.items()]
    others = [f"batch {size.batch}: {size.why}" for size in result.sizes if size.why]
    return page(
        StageName.BATCHING,
        result.verdict,
        f"**batch {result.batch}**: {result.reason}" if result.batch else result.reason,
        table(heads, [_row(size, names, result) for size in result.sizes], right=heads),
        section("Sizes that will not do", bullets(others)),
        _throughput(result),
        section(
            "Bounds",
            bullets(bounds),
            f"{result.limits.tolerance:.0%} of throughput may be given up for a smaller size. A sequence has "
            f"{result.config.context} tokens of context.",
        ),
        f"Started from batch {result.prior}, which an earlier record suggested." if result.prior else "",
    )


def _row(size: SizeFigures, names: list[str], result: BatchingResult) -> tuple[str, ...]:
    batch = f"**{size.batch}**" if size.batch == result.batch else str(size.batch)
    if size.peak_bytes is None:
        return (batch, str(size.runs), *["-"] * (2 + len(names)))
    latency = [f"{size.latency_ms[name]:.1f} ms" if name in size.latency_ms else "-" for name in names]
    return (batch, str(size.runs), f"{size.throughput:,.0f}", _size(size.peak_bytes), *latency)


def _throughput(result: BatchingResult) -> str:
    rows = [(f"batch {size.batch}", size.throughput) for size in result.sizes if size.peak_bytes is not None]
    marked = f"batch {result.batch}"
    return bars("Throughput of all sequences", "tokens/s", rows, marked=marked) if len(rows) > 1 else ""


def words(name: str) -> str:
    """`ttft_p95` as people write it."""
    return name.replace("ttft", "TTFT").replace("tpot", "TPOT").replace("_", " ")


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"


def _p95(size: SizeFigures) -> list[str]:
    return [name for name in size.latency_ms if name.endswith("p95")]
