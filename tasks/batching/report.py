"""The choice of a batch size, for people."""

from __future__ import annotations

from tasks.batching.models import BatchingResult, SizeFigures
from tasks.core.records import Number


def headline(result: BatchingResult) -> str:
    """The size and what it gives."""
    chosen = result.chosen
    if chosen is None:
        return result.reason
    tail = "".join(f", {name} {chosen.latency_ms[name]:.1f} ms" for name in _p95(chosen))
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
    names = sorted({name for size in result.sizes for name in size.latency_ms})
    head = "".join(f" {name} ms |" for name in names)
    rows = "\n".join(_row(size, names, result) for size in result.sizes)
    bounds = ", ".join(f"{name} ≤ {bound:g} ms" for name, bound in result.limits.latency_ms.items())
    start = (
        f"Started from batch {result.prior}, which an earlier record suggested.\n\n" if result.prior else ""
    )
    return (
        f"# Batching: {result.batch or 'none'}\n\n{result.reason}\n\n"
        f"Bounds: memory ≤ {result.limits.memory_bytes / 1e6:.0f} MB"
        f"{', ' + bounds if bounds else ''}; {result.limits.tolerance:.0%} of throughput may be given up "
        f"for a smaller size. Context {result.config.context} tokens a sequence.\n\n{start}"
        f"| batch | runs | tokens/s | peak MB |{head} |\n|---:|---:|---:|---:|{'---:|' * len(names)}---|\n{rows}\n"
    )


def _row(size: SizeFigures, names: list[str], result: BatchingResult) -> str:
    word = "**chosen**" if size.batch == result.batch else size.why
    if size.peak_bytes is None:
        return f"| {size.batch} | {size.runs} | - | - |{' - |' * len(names)} {word} |"
    latency = "".join(
        f" {size.latency_ms[name]:.1f} |" if name in size.latency_ms else " - |" for name in names
    )
    return f"| {size.batch} | {size.runs} | {size.throughput:.0f} | {size.peak_bytes / 1e6:.1f} |{latency} {word} |"


def _p95(size: SizeFigures) -> list[str]:
    return [name for name in size.latency_ms if name.endswith("p95")]
