"""The choice of a format, for people."""

from __future__ import annotations

from tasks.core.figures import bars
from tasks.core.markdown import bullets, page, section
from tasks.core.markdown import table as markdown_table
from tasks.core.records import Number
from tasks.core.verdicts import StageName
from tasks.quantization.models import Measured, QuantizationResult


def headline(result: QuantizationResult) -> str:
    """The chosen format with its size, and what it costs."""
    chosen = result.chosen
    if chosen is None:
        return f"none of {len(result.measured)} formats qualifies"
    loss = f", quality {-chosen.quality.loss:+.2%}" if chosen.quality else ""
    return f"{chosen.format}, {_size(chosen)}{loss}, {chosen.tokens_per_s:.0f} tokens/s"


def numbers(result: QuantizationResult) -> dict[str, Number]:
    """Figures of the chosen candidate."""
    chosen = result.chosen
    if chosen is None or chosen.candidate is None or chosen.tokens_per_s is None:
        return {}
    found = {
        "size_bytes": Number(value=chosen.candidate.size_bytes, unit="byte"),
        "tokens_per_s": Number(value=chosen.tokens_per_s, unit="token/s"),
    }
    if chosen.quality:
        found |= {
            "perplexity": Number(value=chosen.quality.perplexity, unit="1"),
            "quality_loss": Number(value=chosen.quality.loss, unit="1"),
            "agreement": Number(value=chosen.quality.agreement, unit="1"),
        }
    return found


def markdown(result: QuantizationResult) -> str:
    """The artifact: every format with its figures and what became of it."""
    chosen = result.chosen.format if result.chosen else None
    heads = columns()[:-1]
    rows = [(f"**{row[0]}**" if row[0] == chosen else row[0], *row[1:-1]) for row in table(result)]
    others = [f"{row.format}: {word}" for row in result.measured if (word := row.rejected or row.passed_over)]
    return page(
        StageName.QUANTIZATION,
        result.verdict,
        f"**{chosen}**: {result.reason}" if chosen else result.reason,
        markdown_table(heads, rows, right=heads[1:]),
        section("Why not the others" if chosen else "Why none", bullets(others)),
        _speeds(result),
        f"A format may lose {result.tolerance:.2%} of the quality of {result.baseline}. {_on_quality(result)}",
    )


def _speeds(result: QuantizationResult) -> str:
    rows = [(row.format.value, row.tokens_per_s) for row in result.measured if row.tokens_per_s]
    marked = result.chosen.format.value if result.chosen else None
    return bars("Speed of one request at a time", "tokens/s", rows, marked=marked) if len(rows) > 1 else ""


def columns() -> tuple[str, ...]:
    """Heads of the table."""
    return "format", "size", "perplexity", "loss", "same top token", "tokens/s", ""


def table(result: QuantizationResult) -> list[tuple[str, ...]]:
    """A row for each format."""
    return [_row(row, result) for row in result.measured]


def _row(row: Measured, result: QuantizationResult) -> tuple[str, ...]:
    quality, chosen = row.quality, result.chosen
    loss = f"{quality.loss:+.2%} ± {quality.loss_error:.2%}" if quality else "-"
    return (
        row.format.value,
        _size(row),
        f"{quality.perplexity:.3f}" if quality else "-",
        "baseline" if row.format == result.baseline and quality else loss,
        f"{quality.agreement:.1%}" if quality else "-",
        f"{row.tokens_per_s:.0f} ± {row.spread:.0%}" if row.tokens_per_s else "-",
        "**chosen**" if chosen and row.format == chosen.format else row.rejected or row.passed_over or "",
    )


def _size(row: Measured) -> str:
    return f"{row.candidate.size_bytes / 1e6:.1f} MB" if row.candidate else "-"


def _on_quality(result: QuantizationResult) -> str:
    quality = result.measured[0].quality
    if quality is None:
        return "Quality was not compared: one format was asked for, and no text given."
    text = (
        f"Quality is perplexity on {quality.tokens} tokens of the held-out text, through the served engine."
    )
    chosen = result.chosen.quality if result.chosen else None
    if chosen and chosen.loss + 1.645 * chosen.loss_error > result.tolerance and chosen.loss_error > 0:
        text += " The chosen format's loss is within the tolerance by estimate, not beyond doubt."
    return text
