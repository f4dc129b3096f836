"""Is a service well? Pure: samples and limits in, findings and a verdict out."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.core.contract import ContractResult
from tasks.core.records import Record
from tasks.core.release import Release
from tasks.core.verdicts import HealthVerdict
from tasks.health.models import (
    Finding,
    GpuSample,
    HealthLimits,
    HealthResult,
    Level,
    ProcessSample,
    Samples,
    ServiceSample,
)

KV_FULL = 0.95
"""Share of the key-value cache above which engines preempt requests."""
GPU_MEMORY_FULL = 0.98

_ORDER = (HealthVerdict.HEALTHY, HealthVerdict.DEGRADED, HealthVerdict.UNHEALTHY)


def limits_of(release: Release, before: Record | None = None) -> HealthLimits:
    """What the release's spec requires; `before` is the record of the last check of this release."""
    spec = release.spec
    return HealthLimits(
        latency_slo_ms=spec.checks.latency_slo_ms,
        gpu_temperature_c=spec.checks.gpu_temperature_c,
        gpus=spec.hardware.gpus,
        memory_bytes=spec.hardware.memory or None,
        memory_fraction=spec.objectives.memory_fraction,
        restarts=before.evidence["result"]["samples"]["process"]["restarts"] if before else 0,
    )


def last_check(latest: Record | None, release: str) -> Record | None:
    """The record of the service's `latest` check, if that was of this release."""
    same = latest is not None and latest.evidence.get("result", {}).get("release") == release
    return latest if same else None


def expectations() -> list[Mapping[str, Any]]:
    """The contract on the table of samples, as data: `type` and its arguments."""
    text = (Path(__file__).parent / "data" / "contract.toml").read_text()
    rows: list[Mapping[str, Any]] = tomllib.loads(text)["expectation"]
    return rows


def conclude(
    name: str,
    release: Release,
    endpoint: str,
    samples: Samples,
    limits: HealthLimits,
    contract: ContractResult | None = None,
    changed: Sequence[str] = (),
) -> HealthResult:
    """The answer of one check. `changed` are files of the engine's environment that changed since they were
    installed."""
    findings = judge(samples, limits, contract, changed)
    return HealthResult(
        verdict=verdict_of(findings),
        name=name,
        release=release.id,
        endpoint=endpoint,
        samples=samples,
        limits=limits,
        findings=findings,
        contract=contract,
    )


def judge(
    samples: Samples,
    limits: HealthLimits,
    contract: ContractResult | None = None,
    changed: Sequence[str] = (),
) -> tuple[Finding, ...]:
    """What is wrong, worst first."""
    found = [
        *_judge_gpus(samples.gpus, limits),
        *_judge_process(samples.process, limits),
        *_judge_service(samples.service, limits),
        *_judge_files(changed),
        *(_judge_contract(contract) if contract else ()),
    ]
    return tuple(sorted(found, key=lambda finding: -_ORDER.index(finding.verdict)))


def verdict_of(findings: tuple[Finding, ...]) -> HealthVerdict:
    """The worst verdict of the findings; healthy without any."""
    return max((finding.verdict for finding in findings), key=_ORDER.index, default=HealthVerdict.HEALTHY)


def _judge_gpus(gpus: tuple[GpuSample, ...], limits: HealthLimits) -> Iterator[Finding]:
    if len(gpus) < limits.gpus:
        yield _unhealthy(
            "gpu",
            f"{len(gpus)} of the {limits.gpus} GPUs of this service are visible",
            fix="look for XID errors: dmesg | grep -i xid",
        )
    for gpu in gpus:
        name = f"GPU {gpu.index} ({gpu.name})"
        if gpu.temperature_c is not None and gpu.temperature_c >= limits.gpu_temperature_c:
            yield _degraded(
                "gpu",
                f"{name} is at {gpu.temperature_c:.0f} °C, and counts as hot from {limits.gpu_temperature_c:.0f} °C",
                fix="check its fans and the air flow, or raise checks.gpu_temperature_c",
            )
        if gpu.slowed:
            yield _degraded("gpu", f"{name} throttles its clocks: {', '.join(gpu.slowed)}")
        if limits.gpus and gpu.memory_used is not None and gpu.memory_used >= GPU_MEMORY_FULL:
            yield _degraded("gpu", f"{name} has {gpu.memory_used:.1%} of its memory in use")


def _judge_process(process: ProcessSample, limits: HealthLimits) -> Iterator[Finding]:
    if not process.alive:
        yield _unhealthy(
            "process", "the engine's process is not running", fix="read its log: slipway logs NAME"
        )
    # A count below the last one comes from a new supervisor.
    new = process.restarts - (limits.restarts if process.restarts >= limits.restarts else 0)
    if new:
        times = "once" if new == 1 else f"{new} times"
        yield _degraded(
            "process",
            f"the engine died and was restarted {times} since the last check",
            fix="read its log: slipway logs NAME",
        )
    if process.memory_bytes is None or limits.memory_bytes is None:
        return
    share = process.memory_bytes / limits.memory_bytes
    if share >= limits.memory_fraction:
        yield _degraded(
            "process",
            f"the engine uses {process.memory_bytes / 1e6:.0f} MB, {share:.0%} of its limit",
            fix="look for a leak (check-leaks), or raise hardware.memory",
        )


def _judge_service(service: ServiceSample, limits: HealthLimits) -> Iterator[Finding]:
    if not service.ready:
        yield _unhealthy("service", "/health does not return 200", fix="read its log: slipway logs NAME")
    if service.completion is None:
        yield _unhealthy("service", f"no completion: {service.fault or 'no answer'}")
        return
    if service.failed:
        asked = service.failed + len(service.latencies_ms)
        yield _degraded("service", f"{service.failed} of {asked} short requests failed: {service.fault}")
    if service.mean_ms is not None and service.mean_ms > limits.latency_slo_ms:
        yield _degraded(
            "service",
            f"the mean time to {service.waited_for} is {service.mean_ms:.0f} ms; it counts as slow above "
            f"{limits.latency_slo_ms:.0f} ms",
            fix="check its load, or raise checks.latency_slo_ms",
        )
    if service.requests_deferred:
        yield _degraded(
            "service",
            f"{service.requests_deferred:.0f} requests wait for a free slot",
            fix="add a replica, or deploy with a larger batch",
        )
    if service.kv_usage is not None and service.kv_usage >= KV_FULL:
        yield _degraded("service", f"{service.kv_usage:.0%} of the key-value cache is in use")


def _judge_files(changed: Sequence[str]) -> Iterator[Finding]:
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        yield _degraded(
            "process",
            f"files of the engine's environment changed since they were installed: {changed[0]}{more}",
            fix="deploy the spec again: it rebuilds the environment",
        )


def _judge_contract(contract: ContractResult) -> Iterator[Finding]:
    for breach in contract.breaches:
        where = f" of {breach.column}" if breach.column else ""
        yield _degraded("contract", f"health samples: {breach.expectation}{where}: {breach.observed}")


def _unhealthy(level: Level, message: str, fix: str | None = None) -> Finding:
    return Finding(level=level, verdict=HealthVerdict.UNHEALTHY, message=message, fix=fix)


def _degraded(level: Level, message: str, fix: str | None = None) -> Finding:
    return Finding(level=level, verdict=HealthVerdict.DEGRADED, message=message, fix=fix)
