"""Findings and verdicts from samples."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inline_snapshot import snapshot

from tasks.core.contract import ContractBreach, ContractResult
from tasks.core.verdicts import HealthVerdict
from tasks.health import plan, report
from tasks.health.models import (
    GpuSample,
    HealthLimits,
    HealthResult,
    ProcessSample,
    Samples,
    ServiceSample,
)

ALIVE = ProcessSample(alive=True, memory_bytes=500_000_000)
ANSWERS = ServiceSample(ready=True, completion=" world", latencies_ms=(10, 20, 30), requests_deferred=0)
GPU = GpuSample(index=0, name="NVIDIA H200", uuid="GPU-1", temperature_c=60, memory_used=0.9)
LIMITS = HealthLimits(memory_bytes=1_000_000_000)


def messages(
    process: ProcessSample = ALIVE,
    service: ServiceSample = ANSWERS,
    gpus: tuple[GpuSample, ...] = (),
    limits: HealthLimits = LIMITS,
    contract: ContractResult | None = None,
) -> tuple[HealthVerdict, list[str]]:
    found = plan.judge(Samples(gpus=gpus, process=process, service=service), limits, contract)
    return plan.verdict_of(found), [finding.message for finding in found]


def test_nothing_found_is_healthy() -> None:
    assert messages(gpus=(GPU,)) == (HealthVerdict.HEALTHY, [])


def test_every_finding() -> None:
    hot = GPU.model_copy(update={"temperature_c": 91, "memory_used": 0.995, "slowed": ("too hot (driver)",)})
    breach = ContractBreach(expectation="expect_x", column="at", observed="1 of 2 values do not fit")
    seen = [
        messages(gpus=(hot,), limits=HealthLimits(gpus=2)),
        messages(process=ProcessSample(alive=False)),
        messages(process=ProcessSample(alive=True, restarts=2, memory_bytes=950_000_000)),
        messages(service=ServiceSample(ready=False, fault="http://x does not answer: refused")),
        messages(
            service=ANSWERS.model_copy(
                update={
                    "latencies_ms": (900.0,),
                    "failed": 2,
                    "fault": "answered 500",
                    "requests_deferred": 3,
                    "kv_usage": 0.97,
                }
            )
        ),
        messages(contract=ContractResult(rows=2, expectations=3, breaches=(breach,))),
    ]
    assert [(verdict.value, *found) for verdict, found in seen] == snapshot(
        [
            (
                "unhealthy",
                "1 of the 2 GPUs of this service are visible",
                "GPU 0 (NVIDIA H200) is at 91 °C, and counts as hot from 85 °C",
                "GPU 0 (NVIDIA H200) throttles its clocks: too hot (driver)",
                "GPU 0 (NVIDIA H200) has 99.5% of its memory in use",
            ),
            ("unhealthy", "the engine's process is not running"),
            (
                "degraded",
                "the engine died and was restarted 2 times since the last check",
                "the engine uses 950 MB, 95% of its limit",
            ),
            ("unhealthy", "/health does not return 200", "no completion: http://x does not answer: refused"),
            (
                "degraded",
                "2 of 3 short requests failed: answered 500",
                "the mean time to first token is 900 ms; it counts as slow above 500 ms",
                "3 requests wait for a free slot",
                "97% of the key-value cache is in use",
            ),
            ("degraded", "health samples: expect_x of at: 1 of 2 values do not fit"),
        ]
    )


def test_restarts_are_counted_since_the_last_check() -> None:
    twice = ProcessSample(alive=True, restarts=2)
    assert messages(process=twice, limits=HealthLimits(restarts=2))[1] == []
    assert messages(process=twice, limits=HealthLimits(restarts=1))[1] == snapshot(
        ["the engine died and was restarted once since the last check"]
    )
    assert "2 times" in messages(process=twice, limits=HealthLimits(restarts=7))[1][0]


def test_gpus_of_a_host_are_no_concern_of_a_service_on_its_processor() -> None:
    full = GPU.model_copy(update={"memory_used": 1.0})
    assert messages(gpus=(full,))[1] == []


@given(
    alive=st.booleans(),
    ready=st.booleans(),
    completed=st.booleans(),
    latencies=st.lists(st.floats(0, 1e6), max_size=5),
    restarts=st.integers(0, 5),
    breaches=st.integers(0, 2),
)
def test_the_verdict_is_the_worst_finding(
    alive: bool, ready: bool, completed: bool, latencies: list[float], restarts: int, breaches: int
) -> None:
    service = ServiceSample(ready=ready, completion="x" if completed else None, latencies_ms=tuple(latencies))
    breach = ContractBreach(expectation="e", column=None, observed="o")
    contract = ContractResult(rows=1, expectations=2, breaches=(breach,) * breaches)
    samples = Samples(process=ProcessSample(alive=alive, restarts=restarts), service=service)
    findings = plan.judge(samples, HealthLimits(), contract)
    verdict = plan.verdict_of(findings)
    assert (verdict is HealthVerdict.UNHEALTHY) == (not (alive and ready and completed))
    assert (verdict is HealthVerdict.HEALTHY) == (not findings)
    if findings:
        assert findings[0].verdict is verdict


def test_the_artifact() -> None:
    limits = HealthLimits(gpus=1, memory_bytes=1_000_000_000)
    samples = Samples(
        gpus=(GPU.model_copy(update={"fan": 0.3, "slowed": ("power brake",)}),),
        process=ALIVE,
        service=ANSWERS.model_copy(update={"kv_usage": 0.5, "completion": "a | <b>"}),
    )
    breach = ContractBreach(expectation="expect_x", column="at", observed="1 of 2 values do not fit")
    contract = ContractResult(rows=2, expectations=3, breaches=(breach,))
    findings = plan.judge(samples, limits, contract)
    result = HealthResult(
        verdict=plan.verdict_of(findings),
        name="chat",
        release="sha256:1",
        endpoint="http://127.0.0.1:1",
        samples=samples,
        limits=limits,
        findings=findings,
        contract=contract,
    )
    assert report.markdown(result) == snapshot("""\
# Health: degraded

chat at http://127.0.0.1:1: GPU 0 (NVIDIA H200) throttles its clocks: power brake (and 1 more).

## Findings

| level | finding | what to do |
|---|---|---|
| ! gpu | GPU 0 (NVIDIA H200) throttles its clocks: power brake |  |
| ! contract | health samples: expect_x of at: 1 of 2 values do not fit |  |

## Sample

| level | seen | value |
|---|---|---|
| gpu | GPU 0 NVIDIA H200 | 60 °C, memory 90%, fan 30% |
| process | runs | yes |
| process | restarts | 0 |
| process | anonymous memory | 500.0 MB of 1000 MB |
| service | /health | 200 |
| service | completion | 'a \\| &lt;b>' |
| service | time to first token of 3 requests | mean 20.0 ms, worst 30.0 ms (slow above 500 ms) |
| service | requests waiting | 0 |
| service | key-value cache | 50% |

## Contract on 2 samples

2 of 3 expectations hold.

| column | expectation | observed |
|---|---|---|
| at | expect_x | 1 of 2 values do not fit |

Look next: `slipway logs chat`, `slipway kb records --stage health`.
""")
    assert report.headline(result) == snapshot(
        "GPU 0 (NVIDIA H200) throttles its clocks: power brake (and 1 more)"
    )
    assert {name: number.value for name, number in report.numbers(result).items()} == snapshot(
        {
            "alive": 1.0,
            "restarts": 0.0,
            "memory_bytes": 500000000.0,
            "latency_ms": 20.0,
            "failed": 0.0,
            "requests_deferred": 0.0,
            "kv_usage": 0.5,
            "gpu_temperature_c": 60.0,
            "gpu_memory_used": 0.9,
        }
    )
    assert result.completion == "a | <b>"


@pytest.mark.parametrize(
    ("latencies", "expected"), [((10.0, 20.0), "first token after 15.0 ms"), ((), "all levels are well")]
)
def test_the_headline_of_a_healthy_service(latencies: tuple[float, ...], expected: str) -> None:
    samples = Samples(
        process=ALIVE, service=ServiceSample(ready=True, completion="x", latencies_ms=latencies)
    )
    result = HealthResult(
        verdict=HealthVerdict.HEALTHY,
        name="chat",
        release="r",
        endpoint="e",
        samples=samples,
        limits=HealthLimits(),
        contract=ContractResult(rows=1, expectations=2),
    )
    assert report.headline(result) == expected
    assert "2 of 2 expectations hold." in report.markdown(result)


def test_changed_files_of_the_environment_are_a_finding() -> None:
    service = ServiceSample(ready=True, completion="text", latencies_ms=(1.0,))
    samples = Samples(process=ProcessSample(alive=True, restarts=0), service=service)
    assert plan.judge(samples, HealthLimits()) == ()
    (finding,) = plan.judge(samples, HealthLimits(), None, ("lib/a.py", "lib/b.py"))
    assert finding.verdict is HealthVerdict.DEGRADED
    assert finding.message.endswith("changed since they were installed: lib/a.py and 1 more")
    assert finding.fix == "deploy the spec again: it rebuilds the environment"
