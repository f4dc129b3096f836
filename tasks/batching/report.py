"""The choice of a batch size, for people."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.batching.models import BatchingResult, Fit, SizeFigures, StepFigures
from tasks.core.figures import bars
from tasks.core.markdown import bullets, fenced, page, section, table
from tasks.core.records import Number
from tasks.core.verdicts import StageName
from tasks.engines.failures import FailureKind


def headline(result: BatchingResult) -> str:
    """The size and what it gives."""
    chosen = result.chosen
    if chosen is None:
        return result.reason
    tail = "".join(f", {words(name)} {chosen.latency_ms[name]:.1f} ms" for name in _p95(chosen))
    steps = (
        f", {stepped.name}" if (stepped := _chosen_steps(result)) and not stepped.steps.are_default else ""
    )
    layers = f", {chosen.gpu_layers} layers on the GPUs" if chosen.gpu_layers is not None else ""
    return f"batch {chosen.batch}{layers}{steps}: {chosen.throughput:.0f} {result.per_s}{tail}"


def numbers(result: BatchingResult) -> dict[str, Number]:
    """Figures of the chosen size."""
    chosen = result.chosen
    if chosen is None:
        return {}
    found = {
        "batch": Number(value=chosen.batch, unit="1"),
        "throughput": Number(value=chosen.throughput, unit=f"{result.config.answers.removesuffix('s')}/s"),
        "peak_bytes": Number(value=chosen.peak_bytes or 0, unit="byte"),
    }
    names = {"gpu_layers", "gpus", "batched_tokens", "micro_batch_tokens"}
    told = result.config.model_dump(include=names)
    found |= {name: Number(value=value, unit="1") for name, value in told.items() if value and value > 0}
    if chosen.sm_activity is not None:
        found["sm_activity"] = Number(value=chosen.sm_activity, unit="1")
    return found | {f"{name}_ms": Number(value=value, unit="ms") for name, value in chosen.latency_ms.items()}


def markdown(result: BatchingResult) -> str:
    """The artifact: every measured size."""
    heads = _heads(result)
    bounds = [f"peak memory at most {_size(result.limits.memory_bytes)}"]
    if result.limits.rate_per_s is not None:
        bounds.append(f"keeps up with {result.limits.rate_per_s:g} requests/s")
    bounds += [f"{words(name)} at most {bound:g} ms" for name, bound in result.limits.latency_ms.items()]
    others = [f"batch {size.batch}: {word}" for size in result.sizes if (word := _why_not(size))]
    mishaps = [
        f"batch {size.batch}: {one.line}"
        for size in result.sizes
        if size.fits or size.fit in (Fit.MEMORY, Fit.LATENCY)
        for one in size.failures
        if one.kind is not FailureKind.SLOW
    ]
    rows = [_row(size, result) for size in result.sizes]
    return page(
        StageName.BATCHING,
        result.verdict,
        f"**batch {result.batch}**: {result.reason}" if result.batch else result.reason,
        _steps(result),
        _under(_chosen_steps(result), table(heads, rows, right=heads)),
        section("Sizes that are not good enough", bullets(others)),
        section("What happened once and not again", bullets(mishaps)),
        section(
            "Last words", *(f"batch {batch}:\n\n{fenced(log)}" for batch, log in _last_words(result.sizes))
        ),
        _throughput(result),
        section(
            "Bounds",
            bullets(bounds),
            f"{result.limits.tolerance:.0%} of throughput may be given up for a smaller size. A sequence has "
            f"{result.config.context} tokens of context.",
        ),
        f"Started from batch {result.prior}, which an earlier record suggested." if result.prior else "",
    )


def why_table(result: BatchingResult) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Heads, and a row for each measured size: its figures and why it is not the one that serves."""
    rows = []
    for size in result.sizes:
        figures = [cell.strip("*") for cell in _row(size, result)]
        rows.append((*figures, _against(size, result)))
    return (*_heads(result), ""), rows


def _against(size: SizeFigures, result: BatchingResult) -> str:
    """Why a size was not chosen, or that it was."""
    chosen = result.chosen
    if not size.fits or chosen is None:
        return _why_not(size)
    if size.batch == chosen.batch:
        return "chosen"
    gain = size.throughput / chosen.throughput - 1
    if gain > 0:
        return f"{gain:.1%} more throughput, within the {result.limits.tolerance:.0%} given up for a smaller size"
    return f"{-gain:.1%} less throughput than batch {chosen.batch}"


def why_not_stepped(result: BatchingResult) -> list[str]:
    """The other steps that were searched, a line each."""
    best = result.chosen.throughput if result.chosen else 0.0
    lines = []
    for one in result.steps:
        if one.chosen:
            continue
        figures = f"at most {one.best.throughput:,.0f} tokens/s" if one.best else "no size keeps the bounds"
        less = (
            f", {1 - one.best.throughput / best:.1%} less" if one.best and best > one.best.throughput else ""
        )
        lines.append(f"{one.name}: {one.why or figures + less}")
    return lines


def what_would_change(result: BatchingResult) -> list[str]:
    """Which changes to the spec would have led to another size, according to the measurements; one line each."""
    chosen, limits = result.chosen, result.limits
    lines = []
    for name, bound in limits.latency_ms.items():
        key = f"objectives.{name.removesuffix('_p95')}_ms"
        if chosen and (value := chosen.latency_ms.get(name)) is not None:
            lines.append(f"{key} below {value:.1f} would refuse batch {chosen.batch} (it is {bound:g})")
        slow = [size for size in result.sizes if size.fit is Fit.LATENCY and name in size.latency_ms]
        lines += [
            f"{key} of {size.latency_ms[name]:.1f} or more may admit batch {size.batch}"
            for size in slow
            if size.latency_ms[name] > bound
        ]
    if chosen is None:
        return lines
    smaller = [size for size in result.sizes if size.fits and size.batch < chosen.batch]
    if smaller:
        nearest = max(smaller, key=lambda size: size.throughput)
        given_up = 1 - nearest.throughput / chosen.throughput
        lines.append(f"tuning.tolerance above {max(given_up, 0):.3f} would choose batch {nearest.batch}")
    if chosen.peak_bytes:
        lines.append(
            f"less memory than {_size(chosen.peak_bytes)} would refuse batch {chosen.batch} "
            f"({_size(limits.memory_bytes)} may be used)"
        )
    largest = max(size.batch for size in result.sizes)
    if largest >= limits.max_batch:
        lines.append(f"tuning.max_batch above {limits.max_batch}: larger sizes were not tried")
    return lines


def _steps(result: BatchingResult) -> str:
    """What was measured by steps; the sizes below are those of the chosen ones."""
    if not result.steps:
        return ""
    heads = ("steps", "sizes", "batch", "tokens/s", "peak memory")
    rows = []
    for one in result.steps:
        best = one.best
        peak = _size(best.peak_bytes) if best and best.peak_bytes else "-"
        figures = (str(best.batch), f"{best.throughput:,.0f}", peak) if best else ("-", "-", "-")
        rows.append((f"**{one.name}**" if one.chosen else one.name, str(len(one.sizes)), *figures))
    others = [f"{one.name}: {one.why}" for one in result.steps if one.why]
    return section("Steps", table(heads, rows, right=heads[1:]), bullets(others))


def _under(steps: StepFigures | None, sizes: str) -> str:
    """The table of sizes, under the steps that they were measured with."""
    return section(f"Batch sizes with {steps.name}", sizes) if steps else sizes


def _chosen_steps(result: BatchingResult) -> StepFigures | None:
    """The chosen steps, if several were measured."""
    return next((one for one in result.steps if one.chosen), None)


def _why_not(size: SizeFigures) -> str:
    """The kind of failure and what it was; if nothing failed, the bound that is not kept."""
    failed = size.failures and size.fit is not Fit.MEMORY
    return size.failures[-1].line if failed and not size.fits else size.why


def _last_words(sizes: Sequence[SizeFigures]) -> list[tuple[int, str]]:
    """The last lines of the log of each size's latest failure."""
    logs = {size.batch: one.log_tail for size in sizes for one in size.failures if one.log_tail}
    return list(logs.items())


def failure_lines(sizes: Sequence[SizeFigures]) -> list[str]:
    """The same for a terminal."""
    lines = []
    for batch, log in _last_words(sizes):
        lines += [f"batch {batch}, last words:", *(f"  {line}" for line in log.splitlines())]
    return lines


def _on_gpus(result: BatchingResult) -> tuple[bool, bool]:
    """Whether the engine itself chose how many layers go on GPUs, and whether the GPUs report how busy they were."""
    sizes = result.sizes
    return any(size.gpu_layers is not None for size in sizes), any(
        size.sm_activity is not None for size in sizes
    )


def _latencies(result: BatchingResult) -> list[str]:
    """The latencies that were measured at any size, by name."""
    return sorted({name for size in result.sizes for name in _p95(size)})


def _heads(result: BatchingResult) -> tuple[str, ...]:
    fitted, busy = _on_gpus(result)
    more = (*["layers on GPUs"] * fitted, *["SMs active"] * busy)
    return ("batch", "runs", result.per_s, "peak memory", *map(words, _latencies(result)), *more)


def _row(size: SizeFigures, result: BatchingResult) -> tuple[str, ...]:
    names = _latencies(result)
    batch = f"**{size.batch}**" if size.batch == result.batch else str(size.batch)
    fitted, busy = _on_gpus(result)
    if size.peak_bytes is None:
        return (batch, str(size.runs), *["-"] * (2 + len(names) + fitted + busy))
    latency = [f"{size.latency_ms[name]:.1f} ms" if name in size.latency_ms else "-" for name in names]
    layers = "-" if size.gpu_layers is None else str(size.gpu_layers)
    active = "-" if size.sm_activity is None else f"{size.sm_activity:.0%}"
    figures = (f"{size.throughput:,.0f}", _size(size.peak_bytes), *latency)
    return (batch, str(size.runs), *figures, *[layers] * fitted, *[active] * busy)


def _throughput(result: BatchingResult) -> str:
    rows = [(f"batch {size.batch}", size.throughput) for size in result.sizes if size.peak_bytes is not None]
    marked = f"batch {result.batch}"
    return bars("Throughput of all sequences", result.per_s, rows, marked=marked) if len(rows) > 1 else ""


def words(name: str) -> str:
    """`ttft_p95` as people write it."""
    return name.replace("ttft", "TTFT").replace("tpot", "TPOT").replace("_", " ")


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"


def _p95(size: SizeFigures) -> list[str]:
    return [name for name in size.latency_ms if name.endswith("p95")]
