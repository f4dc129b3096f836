"""The knowledge base's answers as tables. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tasks.core.engine_options import EngineArg
from tasks.core.records import Number, Record
from tasks.core.serving import step_words
from tasks.knowledge.models import Cell, Reason

RECORD_COLUMNS = ("id", "at", "stage", "subject", "outcome", "seconds", "numbers")
MATRIX_COLUMNS = (
    "engine", "model", "hardware", "GPUs", "batch", "format", "tokens/s", "memory", "at KV budget", "ttft p95",
    "tpot p95", "quality loss", "runs", "at", "record",
)  # fmt: skip
REASON_COLUMNS = ("record", "at", "stage", "outcome", "numbers")
_SHOWN_NUMBERS = 4
_COUNTS = ("1", "count", "findings", "GPUs")
"""Units that only repeat the name before them."""
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def record_row(record: Record) -> tuple[str, ...]:
    """One record in `RECORD_COLUMNS`."""
    return (
        record.id,
        _time(record),
        record.stage,
        record.subject,
        record.outcome,
        f"{record.seconds:.2f}",
        numbers_text(record),
    )


def cell_row(cell: Cell) -> tuple[str, ...]:
    """One cell in `MATRIX_COLUMNS`."""
    return (
        cell.engine,
        cell.model,
        cell.hardware,
        _placed(cell),
        ", ".join(
            [str(cell.batch), *step_words(cell.batched_tokens, cell.micro_batch_tokens), *_given(cell)]
        ),
        cell.format or "-",
        f"{cell.throughput:.0f}" + ("" if cell.answers == "tokens" else f" {cell.answers}/s"),
        "-" if cell.memory_bytes is None else f"{cell.memory_bytes / 1e6:.0f} MB",
        "-" if cell.memory_at_kv is None else _number(cell.memory_at_kv).strip(),
        _milliseconds(cell.ttft_ms),
        _milliseconds(cell.tpot_ms),
        "-" if cell.quality_loss is None else f"{cell.quality_loss:+.2%}",
        str(cell.measured),
        f"{cell.at:%Y-%m-%d}",
        cell.record,
    )


def _given(cell: Cell) -> list[str]:
    """What the spec gave the engine besides."""
    arguments = (
        f"--{name}" if value is True else f"--{name}={_text(value)}"
        for name, value in cell.engine_args.items()
    )
    return [*arguments, *(f"{name}={value}" for name, value in cell.engine_env.items())]


def _text(value: EngineArg) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _placed(cell: Cell) -> str:
    """The number of GPUs, and the settings that decided what ran on them."""
    if not cell.gpus:
        return "-"
    shown = [f"{cell.gpu_layers} layers"] if cell.gpu_layers else []
    shown += [f"{cell.memory_fraction:g} of memory"] if cell.memory_fraction else []
    return ", ".join((str(cell.gpus), *shown))


def reason_row(reason: Reason) -> tuple[str, ...]:
    """One record behind a release, in `REASON_COLUMNS`, indented by its distance."""
    name = "  " * reason.depth + reason.id
    if reason.record is None:
        return (name, "", "", "not in this store", "")
    record = reason.record
    return (name, _time(record), record.stage, record.outcome, numbers_text(record))


def numbers_text(record: Record) -> str:
    """The first figures of a record with their units; those that were not measured are marked."""
    shown = [
        f"{_words(name)} {_number(number)}" for name, number in list(record.numbers.items())[:_SHOWN_NUMBERS]
    ]
    error = record.evidence.get("error")
    if error:  # text for a lifecycle, a document for a stage
        shown.append(str(error.get("what", "")) if isinstance(error, Mapping) else str(error))
    return ", ".join(shown)


def _words(name: str) -> str:
    """A figure's name without the unit, which follows its value."""
    if not name.endswith("_per_s"):
        name = re.sub(r"_(bytes|ms|s)$", "", name)
    return name.replace("_", " ")


def _number(number: Number) -> str:
    unit = "" if number.unit in _COUNTS else f" {number.unit}"
    kind = "" if number.kind == "measured" else f" ({number.kind})"
    if unit in (" B", " byte"):
        for size, prefix in _PREFIXES:
            if abs(number.value) >= size:
                return f"{number.value / size:.3g} {prefix}B{kind}"
    value = f"{number.value:,.0f}" if abs(number.value) >= 1000 else f"{number.value:.4g}"
    return f"{value}{unit}{kind}"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"


def _time(record: Record) -> str:
    return f"{record.at:%Y-%m-%d %H:%M:%S}"
