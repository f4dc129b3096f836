"""A health check's answer for people, records and tables. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from tasks.core.contract import ContractResult
from tasks.core.markdown import page, section, table
from tasks.core.records import Number
from tasks.core.verdicts import HealthVerdict, StageName
from tasks.health.models import HealthResult

NUMBERS = {
    "alive": "1",
    "restarts": "1",
    "memory_bytes": "B",
    "latency_ms": "ms",
    "failed": "1",
    "requests_deferred": "1",
    "kv_usage": "1",
    "gpu_temperature_c": "°C",
    "gpu_memory_used": "1",
}
"""Figures of a check and their units; figures that a level does not report are omitted."""


def headline(result: HealthResult) -> str:
    """The worst finding, or how quickly the service answers."""
    if result.findings:
        more = f" (and {len(result.findings) - 1} more)" if len(result.findings) > 1 else ""
        return result.findings[0].message + more
    mean = result.samples.service.mean_ms
    return (
        f"{result.samples.service.waited_for} after {mean:.1f} ms"
        if mean is not None
        else "all levels are well"
    )


def numbers(result: HealthResult) -> Mapping[str, Number]:
    """Figures for the record, and for the table that the contract checks."""
    samples = result.samples
    temperatures = [gpu.temperature_c for gpu in samples.gpus if gpu.temperature_c is not None]
    shares = [gpu.memory_used for gpu in samples.gpus if gpu.memory_used is not None]
    values: dict[str, float | None] = {
        "alive": float(samples.process.alive),
        "restarts": samples.process.restarts,
        "memory_bytes": samples.process.memory_bytes,
        "latency_ms": samples.service.mean_ms,
        "failed": samples.service.failed,
        "requests_deferred": samples.service.requests_deferred,
        "kv_usage": samples.service.kv_usage,
        "gpu_temperature_c": max(temperatures, default=None),
        "gpu_memory_used": max(shares, default=None),
    }
    return {
        name: Number(value=value, unit=NUMBERS[name]) for name, value in values.items() if value is not None
    }


_MARK = {HealthVerdict.HEALTHY: "✓", HealthVerdict.DEGRADED: "!", HealthVerdict.UNHEALTHY: "✗"}


def markdown(result: HealthResult) -> str:
    """The artifact: findings first, then what each level reports."""
    findings = [(f"{_MARK[one.verdict]} {one.level}", one.message, one.fix or "") for one in result.findings]
    return page(
        StageName.HEALTH,
        result.verdict,
        f"{result.name} at {result.endpoint}: {headline(result)}",
        section("Findings", table(("level", "finding", "what to do"), findings) if findings else ""),
        section("Sample", table(("level", "seen", "value"), rows(result))),
        _contract_section(result.contract) if result.contract else "",
        f"Look next: `slipway logs {result.name}`, `slipway kb records --stage health`.",
    )


def rows(result: HealthResult) -> list[tuple[str, str, str]]:
    """Level, property, and value."""
    process, service, limits = result.samples.process, result.samples.service, result.limits
    seen: list[tuple[str, str, str]] = []
    for gpu in result.samples.gpus:
        temperature = "?" if gpu.temperature_c is None else f"{gpu.temperature_c:.0f} °C"
        memory = "" if gpu.memory_used is None else f", memory {gpu.memory_used:.0%}"
        fan = "" if gpu.fan is None else f", fan {gpu.fan:.0%}"
        seen.append(("gpu", f"GPU {gpu.index} {gpu.name}", f"{temperature}{memory}{fan}"))
    if not result.samples.gpus:
        seen.append(("gpu", "GPUs", "none on this host"))
    seen.append(("process", "runs", "yes" if process.alive else "no"))
    seen.append(("process", "restarts", str(process.restarts)))
    if process.memory_bytes is not None:
        limit = f" of {limits.memory_bytes / 1e6:.0f} MB" if limits.memory_bytes else ""
        seen.append(("process", "anonymous memory", f"{process.memory_bytes / 1e6:.1f} MB{limit}"))
    seen.append(("service", "/health", "200" if service.ready else "no"))
    seen.append(("service", "completion", "none" if service.completion is None else repr(service.completion)))
    if service.mean_ms is not None:
        worst = max(service.latencies_ms)
        seen.append(
            (
                "service",
                f"time to {service.waited_for} of {len(service.latencies_ms)} requests",
                f"mean {service.mean_ms:.1f} ms, worst {worst:.1f} ms (slow above {limits.latency_slo_ms:.0f} ms)",
            )
        )
    if service.requests_deferred is not None:
        seen.append(("service", "requests waiting", f"{service.requests_deferred:.0f}"))
    if service.kv_usage is not None:
        seen.append(("service", "key-value cache", f"{service.kv_usage:.0%}"))
    return seen


def _contract_section(contract: ContractResult) -> str:
    held = contract.expectations - len(contract.breaches)
    breaches = [(breach.column or "", breach.expectation, breach.observed) for breach in contract.breaches]
    return section(
        f"Contract on {contract.rows} samples",
        f"{held} of {contract.expectations} expectations hold.",
        table(("column", "expectation", "observed"), breaches) if breaches else "",
    )
