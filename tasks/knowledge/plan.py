"""Read answers from records. Pure: nothing here is typed in by hand, and each answer names its records.

Records of other stages are read as plain JSON: if another version wrote one and it lacks a figure, that leaves a gap,
never an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tasks.core.digests import short
from tasks.core.model_task import ANSWERS, Task
from tasks.core.records import Record
from tasks.core.spec_kinds import EngineKind
from tasks.core.verdicts import StageName
from tasks.engines.card import read_card
from tasks.knowledge.kv_memory import KV_TOKENS, memory_at
from tasks.knowledge.models import Cell, Reason


def matrix(records: Sequence[Record], kv_tokens: int = KV_TOKENS) -> tuple[Cell, ...]:
    """The best measured parameters for each engine, model and hardware, from batching's records.

    Best means the highest throughput within the objectives of the run that measured it. Each cell has its own
    peak memory, and the memory at a budget of `kv_tokens`, which is the same for all.
    """
    names, hosts = model_names(records), hardware_names(records)
    losses = _quality_losses(records)
    best: dict[tuple[str, str, str, int], Cell] = {}
    for record in records:
        cell = _cell(record, names, hosts, losses, kv_tokens)
        if cell is None:
            continue
        key = (cell.engine, cell.model_digest, cell.host_fingerprint, cell.gpus)
        previous = best.get(key)
        count = previous.measured + 1 if previous else 1
        winner = cell if previous is None or cell.throughput >= previous.throughput else previous
        best[key] = winner.model_copy(update={"measured": count})
    return tuple(sorted(best.values(), key=lambda cell: (cell.engine, cell.model, cell.hardware, cell.gpus)))


def _cell(
    record: Record,
    names: Mapping[str, str],
    hosts: Mapping[str, str],
    losses: Mapping[tuple[str, str, str, str], float],
    kv_tokens: int,
) -> Cell | None:
    if record.stage is not StageName.BATCHING or not record.good:
        return None
    inputs, chosen = part(record, "inputs"), part(record, "result", "chosen")
    digest, batch, throughput = inputs.get("model_digest"), chosen.get("batch"), chosen.get("throughput")
    if not isinstance(digest, str) or not isinstance(batch, int) or not isinstance(throughput, int | float):
        return None
    latency = part(record, "result", "chosen", "latency_ms")
    engine, format_ = str(inputs.get("engine", "?")), inputs.get("format")
    task = inputs.get("task", Task.GENERATE)
    generates = task == Task.GENERATE  # others keep no keys and values
    return Cell(
        engine=engine,
        model=names.get(digest, record.subject),
        model_digest=digest,
        hardware=hosts.get(record.host_fingerprint, short(record.host_fingerprint)),
        host_fingerprint=record.host_fingerprint,
        **_placement(record),
        batch=batch,
        format=format_,
        context=inputs.get("context"),
        threads=inputs.get("threads"),
        throughput=throughput,
        memory_bytes=chosen.get("peak_bytes"),
        kv_tokens=kv_tokens,
        memory_at_kv=memory_at(_peaks(record), kv_tokens) if generates and _holds_sequences(engine) else None,
        ttft_ms=latency.get("ttft_p95"),
        tpot_ms=latency.get("tpot_p95"),
        quality_loss=losses.get((engine, digest, record.host_fingerprint, str(format_))),
        answers=ANSWERS.get(task, "answers"),
        measured=1,
        at=record.at,
        record=record.id,
        engine_args=dict(part(record, "inputs", "engine_args")),
        engine_env=dict(part(record, "inputs", "engine_env")),
    )


def _placement(record: Record) -> dict[str, Any]:
    """How many GPUs the engine had, and the settings that placed it there."""
    config, inputs = part(record, "result", "config"), part(record, "inputs")
    layers, split = (config.get(name, inputs.get(name)) or 0 for name in ("gpu_layers", "gpus"))
    given = part(record, "inputs", "space", "devices").get("gpu_bytes")
    gpus = split or (len(given) if layers and isinstance(given, list) else int(bool(layers)))
    return {
        "gpus": gpus,
        "gpu_layers": layers or None,
        "memory_fraction": config.get("memory_fraction") if split else None,
        "batched_tokens": config.get("batched_tokens"),
        "micro_batch_tokens": config.get("micro_batch_tokens"),
    }


def _holds_sequences(engine: str) -> bool:
    """Whether it is configured with a number of sequences: without, it uses the same memory at every size."""
    known = next((kind for kind in EngineKind if kind == engine), None)
    return known is None or read_card(known).find_knob("batch") is not None


def _peaks(record: Record) -> dict[int, int]:
    """Peaks of all sizes that a search measured, bytes, by the tokens whose keys and values fitted."""
    context = part(record, "inputs").get("context")
    sizes = part(record, "result").get("sizes")
    if not isinstance(context, int) or not isinstance(sizes, list):
        return {}
    rows = [row for row in sizes if isinstance(row, Mapping)]
    return {
        row["batch"] * context: row["peak_bytes"]
        for row in rows
        if isinstance(row.get("batch"), int) and isinstance(row.get("peak_bytes"), int)
    }


def model_names(records: Iterable[Record]) -> dict[str, str]:
    """A model's source, by the digest of its manifest: from staging's records."""
    found = {}
    for record in records:
        result = part(record, "result")
        if record.stage is StageName.STAGING and "manifest_digest" in result and "source" in result:
            found[str(result["manifest_digest"])] = str(result["source"])
    return found


def hardware_names(records: Iterable[Record]) -> dict[str, str]:
    """What a host is, by its fingerprint: from compatibility's records."""
    found = {}
    for record in records:
        facts = part(record, "result", "facts")
        if record.stage is StageName.COMPATIBILITY and facts:
            found[record.host_fingerprint] = describe_hardware(facts)
    return found


def describe_hardware(facts: Mapping[str, Any]) -> str:
    """GPUs, CPU and memory in a few words."""
    gpus = [str(gpu.get("name", "GPU")) for gpu in facts.get("gpus") or []]
    counted = [f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)]
    cores = f"{facts.get('cpu_count') or '?'} cores"
    memory = facts.get("memory_bytes")
    size = [f"{memory / 2**30:.0f} GiB"] if isinstance(memory, int | float) else []
    return ", ".join([*counted, str(facts.get("cpu") or "unknown processor"), cores, *size])


def _quality_losses(records: Iterable[Record]) -> dict[tuple[str, str, str, str], float]:
    """Loss of quality by engine, model, host and format: from quantization's records."""
    found: dict[tuple[str, str, str, str], float] = {}
    for record in records:
        if record.stage is not StageName.QUANTIZATION:
            continue
        inputs = part(record, "inputs")
        engine, digest = str(inputs.get("engine", "?")), str(inputs.get("model_digest"))
        for row in part(record, "result").get("measured") or ():
            loss = (row.get("quality") or {}).get("loss")
            if isinstance(loss, Mapping):  # with its interval; a plain number in older records
                loss = loss.get("value")
            if loss is not None:
                found[engine, digest, record.host_fingerprint, str(row.get("format"))] = loss
    return found


def part(record: Record, *path: str) -> Mapping[str, Any]:
    """An object inside a record's evidence; empty if missing."""
    here: Any = record.evidence
    for name in path:
        here = here.get(name) if isinstance(here, Mapping) else None
    return here if isinstance(here, Mapping) else {}


def explain(ids: Sequence[str], records: Sequence[Record]) -> tuple[Reason, ...]:
    """These records, each followed by those that its decision consulted, and so on; each only once."""
    by_id = {record.id: record for record in records}
    seen: set[str] = set()
    found: list[Reason] = []

    def visit(record_id: str, depth: int) -> None:
        if record_id in seen:
            return
        seen.add(record_id)
        record = by_id.get(record_id)
        found.append(Reason(id=record_id, depth=depth, record=record))
        for consulted in record.consulted if record else ():
            visit(consulted, depth + 1)

    for record_id in ids:
        visit(record_id, 0)
    return tuple(found)
