"""The answer for people: one line, a few figures, and the artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from tasks.compatibility.matrix import capabilities_of_cards
from tasks.compatibility.models import (
    CUDA_LIBRARY,
    NOT_KNOWN,
    CompatibilityResult,
    Finding,
    Matrix,
    Survey,
    TablesCheck,
    WayOut,
)
from tasks.compatibility.rules import CapabilityRow, Tables
from tasks.compatibility.subject import disagreements
from tasks.core.digests import short
from tasks.core.facts import Disk, Facts, Gpu
from tasks.core.markdown import cell, page, section, table
from tasks.core.records import Number
from tasks.core.verdicts import StageName

BREACH = ("table", "column", "expectation", "observed")
"""Columns of `breach_rows`."""

_GIB = 2**30
_WORDS = {
    "cuda_driver": "driver's CUDA",
    "nvcc": "toolkit (nvcc)",
    "gpus": "GPUs",
    "cpu": "processor",
    "cpu_count": "processors",
    "memory_bytes": "memory",
    "cuda_build": "packages' CUDA",
    "container_gpus": "GPUs for containers",
    "gpus_wanted": "GPUs asked for",
    "forward_compat": "cuda-compat loaded",
}
"""Names of facts for people, where the key itself is not clear enough."""


def headline(result: CompatibilityResult) -> str:
    """`CPU only, 0 findings`, `CPU only: vllm needs a GPU …`, or `H200, driver 570.124.06, CUDA 12.8 build: pass`."""
    facts = result.facts
    if facts.known("gpus") and not facts.gpus:
        blocking = next((finding.message for finding in result.findings if finding.severity == "block"), None)
        if blocking is not None:
            return f"CPU only: {blocking}"
        count = len([finding for finding in result.findings if finding.severity != "info"])
        return f"CPU only, {count} finding{'' if count == 1 else 's'}"
    build = f"CUDA {facts.cuda_build} build" if facts.cuda_build else "no CUDA build"
    return f"{_gpu_names(facts)}, driver {facts.driver or 'none'}, {build}: {result.verdict.value}"


def numbers(result: CompatibilityResult) -> Mapping[str, Number]:
    """Findings by severity, and what the host has."""
    counted = {
        f"findings_{severity}": Number(value=_count(result, severity), unit="findings")
        for severity in ("block", "warn", "unknown", "info")
    }
    memory = result.facts.memory_bytes
    host = {"gpus": Number(value=len(result.facts.gpus), unit="GPUs")}
    if memory is not None:
        host["memory"] = Number(value=memory, unit="bytes")
    return {**counted, **host}


def answer(result: CompatibilityResult) -> dict[str, Any]:
    """The JSON document of `compat check`. `set_aside` are the findings that people see with `--all` only."""
    shown = [finding for finding in result.findings if not finding.is_aside]
    aside = [finding for finding in result.findings if finding.is_aside]
    return {
        "verdict": result.verdict.value,
        "findings": [finding.model_dump(mode="json") for finding in shown],
        "ways_out": [way.model_dump(mode="json") for way in result.ways_out],
        "set_aside": [finding.model_dump(mode="json") for finding in aside],
    }


def remarks(result: CompatibilityResult) -> tuple[Finding, ...]:
    """What did not decide the verdict, and is worth a look."""
    return tuple(one for one in result.findings if one not in result.deciding and not one.is_aside)


def aside_text(result: CompatibilityResult) -> str:
    """`3 set aside: not judged without dtype, family; contradicted: ART-1-ELSE`; empty if there is nothing."""
    aside = [finding for finding in result.findings if finding.is_aside]
    contradicted = [finding.rule for finding in aside if finding.contradicted_by]
    unknown = [finding.rule for finding in aside if not finding.contradicted_by]
    facts = [rule.removeprefix(NOT_KNOWN).lower().replace("-", "_") for rule in unknown]
    parts = [
        *([f"not judged without {', '.join(facts)}"] if facts else []),
        *([f"contradicted: {', '.join(contradicted)}"] if contradicted else []),
    ]
    return f"{len(aside)} set aside: {'; '.join(parts)}" if aside else ""


def way_text(way: WayOut) -> str:
    """`vllm 0.32.0 -> 0.19.1, torch 2.13.0 -> 2.10.0`."""
    return way.text


def facts_rows(facts: Facts) -> list[tuple[str, str]]:
    """Each fact in words; an absent one reads `none`, an unknown one is left out."""
    rows = [
        (_WORDS.get(name, name.replace("_", " ")), _in_words(name, getattr(facts, name)))
        for name in Facts.model_fields
        if facts.known(name) and name != "packages"
    ]
    if facts.known("packages"):
        rows.append(("packages", f"{len(facts.packages)}"))
    return rows


def survey_rows(survey: Survey) -> list[tuple[str, str]]:
    """The facts in words, the user-mode driver that programs load, and faults of the sources."""
    rows = facts_rows(survey.facts)
    rows += [(one.fact, one.value or "none") for one in survey.sightings if one.fact == CUDA_LIBRARY]
    rows += [("disagreement", f"{fact}: {who}") for fact, who in disagreements(survey.sightings).items()]
    rows += [("warning", survey.warning)] if survey.warning else []
    return rows + ([("fault", survey.fault)] if survey.fault else [])


def markdown(result: CompatibilityResult) -> str:
    """Verdict, findings, facts, and their sources. What decided comes first."""
    sightings = [(one.fact, one.source, one.value or "none") for one in result.sightings]
    aside = aside_text(result)
    return page(
        StageName.COMPATIBILITY,
        result.verdict,
        headline(result),
        section("Findings", "\n".join(map(_finding_text, result.deciding)) or "None."),
        section("Ways out", _ways_out(result)),
        section(
            "Remarks",
            "\n".join(map(_finding_text, remarks(result))),
            f"{aside} (`slipway compat check --all`)." if aside else "",
        ),
        section("Facts", table(("fact", "value"), facts_rows(result.facts))),
        section("Facts by source", table(("fact", "source", "value"), sightings) if sightings else ""),
        section("Fact tables", *_tables(result.tables)),
    )


def tables_headline(check: TablesCheck) -> str:
    """`16 tables, 626 rows, 120 expectations: all hold`."""
    counts = f"{len(check.tables)} tables, {check.rows} rows, {check.expectations} expectations"
    breaches = sum(len(table.breaches) for table in check.tables)
    return f"{counts}: {f'{breaches} broken' if breaches else 'all hold'}"


def breach_rows(check: TablesCheck) -> list[tuple[str, str, str, str]]:
    """Table, column, expectation and what was found instead, for each breach."""
    return [
        (table.table, breach.column or "", breach.expectation, breach.observed)
        for table in check.broken
        for breach in table.breaches
    ]


def tables_answer(check: TablesCheck) -> dict[str, Any]:
    """The JSON document of `compat tables`."""
    return {
        **check.identity.model_dump(),
        "page": check.page,
        "tables": [
            {
                "table": table.table,
                "rows": table.rows,
                "expectations": table.expectations,
                "breaches": [breach.model_dump() for breach in table.breaches],
                "last_checked_on": table.last_checked_on.isoformat() if table.last_checked_on else None,
            }
            for table in check.tables
        ],
    }


MATRIX = ("release", "torch", "CUDA", "driver from", "GPUs", "glibc from", "python", "transformers", "here")
"""Columns of `matrix_rows`."""


def matrix_rows(matrix: Matrix, tables: Tables) -> list[tuple[str, ...]]:
    """A row for people: GPUs as runs of generations; an empty cell is not known, or not asked for."""
    return [
        (
            row.release,
            row.torch or "",
            row.cuda or "",
            row.driver,
            _generations(row.gpus, capabilities_of_cards(tables)),
            row.glibc or "",
            row.python or "",
            row.transformers or "",
            row.here.value if row.here else "",
        )
        for row in matrix.rows
    ]


def _generations(served: Sequence[str], capabilities: Sequence[CapabilityRow]) -> str:
    """`Turing 7.5 to Hopper 9.0, Blackwell 12.0`: what lies between two ends is served too."""
    runs: list[list[CapabilityRow]] = []
    for before, row in pairwise((None, *capabilities)):
        if row is None or row.cc not in served:
            continue
        if before is None or before.cc not in served:
            runs.append([])
        runs[-1].append(row)
    names = [[f"{row.architecture.split()[0]} {row.cc}" for row in run] for run in runs]
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in names)


def _tables(check: TablesCheck | None) -> tuple[str, ...]:
    if check is None:
        return ()
    digest, by = short(check.identity.digest), check.identity.great_expectations
    return (
        f"{tables_headline(check)} (digest `{digest}`, by Great Expectations {by}).",
        table(BREACH, breach_rows(check)) if check.broken else "",
        f"Data Docs, on the host of this run: `{check.page}`",
    )


def _ways_out(result: CompatibilityResult) -> str:
    if not result.ways_out:
        return ""
    rows = [(way.text, f"**{way.verdict.value}**", way.why) for way in result.ways_out]
    return table(("change", "then", "why"), rows)


def _finding_text(finding: Finding) -> str:
    message, fix, sources = (
        cell(text, table=False) for text in (finding.message, finding.fix, "; ".join(finding.sources))
    )
    return (
        f"- **{finding.severity}** `{finding.rule}` ({finding.precedence}): {message}\n"
        + (f"  - What to do: {fix}\n" if fix else "")
        + f"  - Source: {sources}"
    )


def _in_words(name: str, value: Any) -> str:
    if name == "gpus":
        return ", ".join(map(_gpu_text, value)) or "none"
    if name == "memory_bytes" and value is not None:
        return f"{value / _GIB:.1f} GiB"
    if name == "disks":
        return "; ".join(map(_disk_text, value)) or "none"
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _gpu_text(gpu: Gpu) -> str:
    """`NVIDIA H200 (9.0), MIG 1g.18gb`."""
    name = f"{gpu.name} ({gpu.compute_capability})" if gpu.compute_capability else gpu.name
    return name if gpu.mig is None else f"{name}, MIG {' '.join(gpu.mig) or 'without instance'}"


def _disk_text(disk: Disk) -> str:
    """`/home: ext4 on /dev/sda1, 1.8 TiB, 0.9 TiB free`; unknown parts are left out."""
    size, free = _bytes(disk.size_bytes), _bytes(disk.free_bytes)
    parts = [
        f"{disk.file_system or 'file system not known'}{f' on {disk.device}' if disk.device else ''}",
        *([size] if size else []),
        *([f"{free} free"] if free else []),
        *(["rotational, says the kernel"] if disk.rotational else []),
    ]
    return f"{disk.mount}: {', '.join(parts)}"


def _bytes(count: int | None) -> str | None:
    if count is None:
        return None
    return f"{count / _GIB:.1f} GiB" if count < 1024 * _GIB else f"{count / (1024 * _GIB):.1f} TiB"


def _gpu_names(facts: Facts) -> str:
    names = [gpu.name.removeprefix("NVIDIA ") for gpu in facts.gpus]
    counted = [f"{names.count(name)} x {name}" if names.count(name) > 1 else name for name in names]
    return ", ".join(dict.fromkeys(counted)) or "GPUs not known"


def _count(result: CompatibilityResult, severity: str) -> int:
    return sum(finding.severity == severity for finding in result.findings)
