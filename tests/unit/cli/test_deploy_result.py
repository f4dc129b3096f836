"""What a deploy leaves on the terminal: a refusal's reasons, whole, when the live board is gone."""

from __future__ import annotations

from typing import Any

import pytest
from inline_snapshot import snapshot

from deployments.cli.deploy import _show_result
from tasks.batching.models import BatchingResult, Fit, Limits, SizeFigures
from tasks.compatibility.models import CompatibilityResult
from tasks.compatibility.models import Finding as RuleFinding
from tasks.core.facts import Facts
from tasks.core.result import StageResult
from tasks.core.serving import ServingConfig
from tasks.core.spec_kinds import CandidateFormat, QuantizationPolicy
from tasks.core.verdicts import LifecycleVerdict, StageName
from tasks.environment.models import EnvironmentResult
from tasks.lifecycle.models import DeployResult, StageRow
from tasks.quantization import report
from tasks.quantization.models import Measured, QuantizationResult

LONG = "because torch==2.13.0 depends on " + ", ".join(
    f"nvidia-part-{number}==1.{number}" for number in range(60)
)


def refused(stage: StageName, result: StageResult, headline: str) -> DeployResult:
    row = StageRow(
        stage=stage,
        verdict=result.verdict,
        cached=False,
        seconds=1.5,
        record="01A",
        headline=headline,
        log_tail=result.log_tail,
        reasons=result.reasons,
    )
    return DeployResult(verdict=LifecycleVerdict.REFUSED, name="tiny", model="file:x", stages=(row,))


def quantization() -> QuantizationResult:
    return QuantizationResult.model_validate(
        {
            "verdict": "none",
            "reason": "none of 2 formats qualifies",
            "policy": next(iter(QuantizationPolicy)),
            "baseline": CandidateFormat.F16,
            "tolerance": 0.02,
            "task_tolerance": 0.02,
            "chosen": None,
            "measured": (
                Measured(format=CandidateFormat.F16, rejected="needs 81.2 GB of memory, 2.0 GB may be used"),
                Measured(format=CandidateFormat.Q8_0, rejected="no baseline to compare with"),
            ),
        }
    )


def test_a_refused_deploy_tells_why_for_each_format(capsys: pytest.CaptureFixture[str]) -> None:
    result = quantization()
    _show_result(refused(StageName.QUANTIZATION, result, report.headline(result)))
    shown = capsys.readouterr().out
    assert shown[shown.index("quantization says") :].splitlines() == snapshot(
        [
            "quantization says none: none of 2 formats qualifies",
            "  - f16: needs 81.2 GB of memory, 2.0 GB may be used",
            "  - q8_0: no baseline to compare with",
            "look next   slipway kb records --stage quantization | slipway up (its UI shows the logs of later runs)",
        ]
    )


def finding(severity: str, message: str) -> RuleFinding:
    return RuleFinding.model_validate(
        {
            "rule": "R",
            "severity": severity,
            "precedence": "P1",
            "message": message,
            "fix": "update it",
            "sources": (),
        }
    )


def size(batch: int, fit: Fit, why: str = "") -> SizeFigures:
    return SizeFigures(batch=batch, runs=1, fit=fit, why=why)


RESULTS: dict[str, tuple[StageResult, Any]] = {
    "environment, longer than a headline": (
        EnvironmentResult.model_validate({"verdict": "conflicting", "reason": LONG}),
        (LONG,),
    ),
    "compatibility, what blocks and nothing less": (
        CompatibilityResult.model_validate(
            {
                "verdict": "block",
                "findings": (finding("warn", "old glibc"), finding("block", "driver 450 is too old")),
                "facts": Facts(),
            }
        ),
        ("driver 450 is too old (update it)",),
    ),
    "batching, each size": (
        BatchingResult.model_validate(
            {
                "verdict": "none",
                "reason": "not even batch 1 works: ttft_p95 is 9 ms, the limit is 1 ms",
                "batch": None,
                "config": ServingConfig(served_name="tiny", batch=1, context=64, threads=1),
                "limits": Limits(memory_bytes=1, max_batch=2),
                "chosen": None,
                "sizes": (size(1, Fit.LATENCY, "ttft_p95 is 9 ms, the limit is 1 ms"), size(2, Fit.FITS)),
            }
        ),
        (
            "not even batch 1 works: ttft_p95 is 9 ms, the limit is 1 ms",
            "batch 1: ttft_p95 is 9 ms, the limit is 1 ms",
        ),
    ),
}


@pytest.mark.parametrize("name", RESULTS)
def test_the_reasons_of_a_no_are_whole(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    result, reasons = RESULTS[name]
    assert result.reasons == reasons
    stage = StageName(name.partition(",")[0])
    _show_result(refused(stage, result, "a headline"))
    shown = capsys.readouterr().out
    assert all(f"  - {reason}\n" in shown for reason in reasons)
