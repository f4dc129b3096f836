"""The choice of a format, for people."""

from __future__ import annotations

from tasks.core.figures import Dot, Standing, scatter
from tasks.core.markdown import bullets, page, section
from tasks.core.markdown import table as markdown_table
from tasks.core.model_task import ANSWERS, Task
from tasks.core.records import Number
from tasks.core.verdicts import StageName
from tasks.engines.card import Scored
from tasks.quantization.models import Estimate, Measured, QuantizationResult
from tasks.quantization.plan import choices, front, kept_by
from tasks.quantization.quality import kept

_SCORED: dict[Scored, str] = {
    "engine": "through the served engine",
    "library": "by the library that the engine serves with, in the engine's own environment",
}


def headline(result: QuantizationResult) -> str:
    """The chosen format with its size, and what it keeps."""
    chosen = result.chosen
    if chosen is None:
        return f"none of {len(result.measured)} formats qualifies"
    left, quality = kept_by(chosen), ""
    if left and result.has_baseline:
        quality = f", keeps {left.low:.2%} or more"
    elif chosen.quality:
        quality = f", perplexity {chosen.quality.perplexity:.2f} without a baseline to compare with"
    title = chosen.candidate.title if chosen.candidate else chosen.format
    return f"{title}, {_size(chosen)}{quality}, {chosen.tokens_per_s:.0f} {result.per_s}"


def numbers(result: QuantizationResult) -> dict[str, Number]:
    """Figures of the chosen candidate."""
    chosen = result.chosen
    if chosen is None or chosen.candidate is None or chosen.tokens_per_s is None:
        return {}
    found = {
        "size_bytes": Number(value=chosen.candidate.size_bytes, unit="byte"),
        **_speed(result, chosen.tokens_per_s),
    }
    if chosen.predicted_bytes is not None:
        found["predicted_size_bytes"] = Number(value=chosen.predicted_bytes, unit="byte", kind="predicted")
    near = chosen.similarity
    if near is not None and result.has_baseline:
        found |= {
            "similarity": Number(value=near.kept.value, unit="1"),
            "similarity_lowest": Number(value=near.lowest, unit="1"),
            "quality_kept_low": Number(value=near.kept.low, unit="1"),
        }
    quality = chosen.quality
    if quality:
        found["perplexity"] = Number(value=quality.perplexity, unit="1")
        if quality.right_answers is not None:
            found["right_answers"] = Number(value=quality.right_answers, unit="1")
    if quality and result.has_baseline:
        found |= {
            "quality_loss": Number(value=quality.loss.value, unit="1"),
            "kl_divergence": Number(value=quality.divergence.value, unit="nat/token"),
            "agreement": Number(value=quality.agreement.value, unit="1"),
            "quality_kept_low": Number(value=kept(quality).low, unit="1"),
        }
    return found


def _speed(result: QuantizationResult, value: float) -> dict[str, Number]:
    """The speed, by what was counted."""
    answers = ANSWERS[result.task]
    return {f"{answers}_per_s": Number(value=value, unit=f"{answers.removesuffix('s')}/s")}


def markdown(result: QuantizationResult) -> str:
    """The artifact: every format with its figures and what became of it."""
    chosen = result.chosen.format if result.chosen else None
    (*heads, _), rows = table(result)
    shown = [(f"**{row[0]}**" if row[0] == chosen else row[0], *row[1:-1]) for row in rows]
    others = [f"{row.format}: {word}" for row in result.measured if (word := row.rejected or row.passed_over)]
    return page(
        StageName.QUANTIZATION,
        result.verdict,
        f"**{chosen}**, by the policy {result.policy}: {result.reason}" if chosen else result.reason,
        markdown_table(heads, shown, right=heads[1:]),
        section("Why not the others" if chosen else "Why none", bullets(others)),
        _figure(result),
        _on_quality(result),
    )


def what_would_change(result: QuantizationResult) -> list[str]:
    """Which changes to the spec would have led to another choice, according to the measurements; one line each."""
    lines = []
    chosen = result.chosen
    if chosen and (left := kept_by(chosen)) and chosen.format != result.baseline:
        lost = 1 - left.low
        lines.append(f"objectives.quality_tolerance below {lost:.4f} would refuse {chosen.format}")
    for row in result.measured:
        if row.rejected and (left := kept_by(row)) and (lost := 1 - left.low) > result.tolerance:
            lines.append(f"objectives.quality_tolerance of {lost:.4f} or more would admit {row.format}")
    for policy, form in choices(result.measured).items():
        if chosen and policy is not result.policy and form != chosen.format:
            lines.append(f"objectives.policy {policy} would choose {form}")
    return lines


def _figure(result: QuantizationResult) -> str:
    best = front(result.measured)
    dots = [dot for row in result.measured if (dot := _dot(row, result, on_front=row.format in best))]
    if len(dots) < 2:
        return ""
    return scatter(
        "Quality, speed and size of each format",
        f"{result.per_s}, one request at a time",
        f"% of {result.baseline}'s quality kept",
        dots,
        floor=100 * (1 - result.tolerance),
        size_note="· area: size",
    )


def _dot(row: Measured, result: QuantizationResult, *, on_front: bool) -> Dot | None:
    here = kept_by(row)
    if here is None or row.tokens_per_s is None or row.candidate is None:
        return None
    standing = Standing.FRONT if on_front else Standing.BEATEN
    if row.rejected:
        standing = Standing.REJECTED
    if result.chosen and row.format == result.chosen.format:
        standing = Standing.CHOSEN
    return Dot(
        label=row.format.value,
        x=row.tokens_per_s,
        y=100 * here.value,
        low=100 * here.low,
        high=100 * here.high,
        size=row.candidate.size_bytes,
        standing=standing,
    )


def table(result: QuantizationResult) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Heads, and a row for each format: what decides first. A figure that no format has is left out."""
    rows = [_row(row, result) for row in result.measured]
    told = [head for head in _FIGURES if any(row[head] != "-" for row in rows)]
    heads = [result.per_s if head == "tokens/s" else head for head in told]
    return ("format", *heads, ""), [tuple(row[head] for head in ("format", *told, "")) for row in rows]


_FIGURES = ("size", "tokens/s", "kept", "perplexity", "loss", "KL nats", "same top", "tasks right", "lowest")


def _row(row: Measured, result: QuantizationResult) -> dict[str, str]:
    quality, chosen = row.quality, result.chosen
    found = dict.fromkeys(_FIGURES, "-") | {"format": row.format.value, "size": _size(row)}
    found[""] = (
        "**chosen**" if chosen and row.format == chosen.format else row.rejected or row.passed_over or ""
    )
    if row.tokens_per_s:
        found["tokens/s"] = f"{row.tokens_per_s:.0f} ± {row.spread:.0%}"
    if (near := row.similarity) is not None:
        baseline = row.format == result.baseline
        itself = "baseline" if result.has_baseline else "not known"
        return found | {
            "kept": itself if baseline else f"≥ {near.kept.low:.2%}",
            "lowest": "-" if baseline else f"{near.lowest:.2%}",
        }
    if quality is None:
        return found
    found["perplexity"] = f"{quality.perplexity:.3f}"
    if quality.right_answers is not None:
        found["tasks right"] = f"{quality.right_answers:.1%}"
    if row.format == result.baseline:
        return found | {"kept": "baseline" if result.has_baseline else "not known"}
    return found | {
        "kept": f"≥ {kept(quality).low:.2%}",
        "loss": _percent(quality.loss, sign=True),
        "KL nats": f"{quality.divergence.value:.5f} ± {_half(quality.divergence):.5f}",
        "same top": _percent(quality.agreement),
    }


def _percent(estimate: Estimate, *, sign: bool = False) -> str:
    value = f"{estimate.value:+.2%}" if sign else f"{estimate.value:.2%}"
    return f"{value} ± {_half(estimate):.2%}"


def _half(estimate: Estimate) -> float:
    return (estimate.high - estimate.low) / 2


def _size(row: Measured) -> str:
    if row.candidate:
        return f"{row.candidate.size_bytes / 1e6:.1f} MB"
    return f"{row.predicted_bytes / 1e6:.1f} MB (predicted)" if row.predicted_bytes else "-"


def _on_quality(result: QuantizationResult) -> str:
    first = result.measured[0]
    if first.similarity is not None:
        return _on_similarity(result, first.similarity.count)
    quality = first.quality
    if quality is None:
        return "Quality was not compared."
    scored = f"{quality.tokens} tokens of the held-out text, {_SCORED[result.scored_by]}"
    if not result.has_baseline:
        return (
            "The model came quantized, and there was no baseline to compare it with: its own perplexity says how "
            f"well it predicts the text, not what the quantization has cost. Measured on {scored}."
        )
    tasks = ""
    if quality.right_answers is not None:
        tasks = f", and may lose {result.task_tolerance:.2%} of the tasks that the baseline solves"
    return (
        f"A format may lose {result.tolerance:.2%} of the quality of {result.baseline}{tasks}: by perplexity, by KL "
        f"divergence and by the tokens it would choose, each at the worse end of its 95 % interval. Measured on "
        f"{scored}. KL divergence is estimated from the likeliest tokens, all others as one (ADR 43)."
    )


def _on_similarity(result: QuantizationResult, count: int) -> str:
    """What embeddings or scores were compared on."""
    if not result.has_baseline:
        return (
            "The model came quantized, and there was no baseline to compare it with: nothing was measured of what "
            "the quantization has cost."
        )
    what = (
        f"the direction of {result.baseline}'s embeddings (cosine), measured on {count} lines"
        if result.task is Task.EMBED
        else f"the order in which {result.baseline} puts documents, measured on {count} queries"
    )
    return (
        f"A format may lose {result.tolerance:.2%} of {what} of the text, at the worse end of its 95 % interval, "
        f"{_SCORED['engine']}."
    )
