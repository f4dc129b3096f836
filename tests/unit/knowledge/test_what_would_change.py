"""What would have led to another format or size is read from what was measured, and true of the choice itself."""

from __future__ import annotations

import pytest
from trials import candidate, request, trial

from tasks.batching import report as batching
from tasks.batching.models import BatchingResult, Fit, Limits, SizeFigures
from tasks.core.serving import ServingConfig
from tasks.core.spec_kinds import CandidateFormat, QuantizationPolicy
from tasks.core.verdicts import ChoiceVerdict
from tasks.quantization import report as quantization
from tasks.quantization.models import QuantizationResult
from tasks.quantization.plan import choose, judge

F16, Q8, Q4 = CandidateFormat.F16, CandidateFormat.Q8_0, CandidateFormat.Q4_0


def formats(tolerance: float, policy: QuantizationPolicy = QuantizationPolicy.LATENCY) -> QuantizationResult:
    """Q8 loses little and is faster, Q4 loses more and is faster still."""
    asked = request(tolerance=tolerance, policy=policy)
    baseline = trial(-3.0, 100.0)
    rows = [
        judge(candidate(F16, 1000), baseline, baseline, asked),
        judge(candidate(Q8, 500), trial(-3.004, 150.0), baseline, asked),
        judge(candidate(Q4, 250), trial(-3.05, 200.0), baseline, asked),
    ]
    return choose(rows, asked)


def bound_of(lines: list[str], words: str) -> float:
    (line,) = [line for line in lines if words in line]
    return float(next(word for word in line.split() if word[0].isdigit()))


def test_the_tolerance_that_would_admit_a_format_does() -> None:
    result = formats(0.02)
    assert result.candidate.format is Q8
    bound = bound_of(quantization.what_would_change(result), "or more would admit q4_0")
    assert formats(bound + 1e-4).candidate.format is Q4
    assert formats(bound - 1e-3).candidate.format is Q8


def test_the_tolerance_that_would_refuse_the_choice_does() -> None:
    bound = bound_of(quantization.what_would_change(formats(0.02)), "would refuse q8_0")
    assert formats(bound - 1e-4).candidate.format is F16
    assert formats(bound + 1e-4).candidate.format is Q8


def test_another_policy_would_choose_what_is_said() -> None:
    lines = quantization.what_would_change(formats(0.02))
    assert "objectives.policy accuracy would choose f16" in lines
    assert formats(0.02, QuantizationPolicy.ACCURACY).candidate.format is F16


def test_where_nothing_keeps_the_floor_only_the_floor_is_named() -> None:
    result = formats(0.02).model_copy(update={"chosen": None})
    assert all("admit" in line for line in quantization.what_would_change(result))


def sizes(**changes: object) -> BatchingResult:
    found = (
        SizeFigures(batch=1, runs=1, fit=Fit.FITS, peak_bytes=10**7, throughput=50, latency_ms={"ttft_p95": 10}),
        SizeFigures(batch=2, runs=1, fit=Fit.FITS, peak_bytes=10**7, throughput=90, latency_ms={"ttft_p95": 20}),
        SizeFigures(batch=4, runs=5, fit=Fit.FITS, peak_bytes=2 * 10**7, throughput=100, latency_ms={"ttft_p95": 40}),
        SizeFigures(
            batch=8, runs=2, fit=Fit.LATENCY, peak_bytes=3 * 10**7, throughput=110, latency_ms={"ttft_p95": 70},
            why="TTFT p95 is 70.0 ms, 50 are allowed",
        ),
    )  # fmt: skip
    return BatchingResult.model_validate(
        {
            "verdict": ChoiceVerdict.CHOSEN,
            "reason": "the most throughput of 4 sizes",
            "batch": 4,
            "config": ServingConfig(served_name="tiny", batch=4, context=256, threads=1),
            "limits": Limits(memory_bytes=10**9, latency_ms={"ttft_p95": 50}, max_batch=8),
            "chosen": found[2],
            "sizes": found,
            **changes,
        }
    )


def test_what_would_change_a_size() -> None:
    assert batching.what_would_change(sizes()) == [
        "objectives.ttft_ms below 40.0 would refuse batch 4 (it is 50)",
        "objectives.ttft_ms of 70.0 or more may admit batch 8",
        "tuning.tolerance above 0.100 would choose batch 2",
        "less memory than 20.0 MB would refuse batch 4 (1.0 GB may be used)",
        "tuning.max_batch above 8: larger sizes were not tried",
    ]


def test_each_size_says_why_it_does_not_serve() -> None:
    heads, rows = batching.why_table(sizes())
    assert heads[:3] == ("batch", "runs", "tokens/s")
    assert [row[-1] for row in rows] == [
        "50.0% less throughput than batch 4",
        "10.0% less throughput than batch 4",
        "chosen",
        "TTFT p95 is 70.0 ms, 50 are allowed",
    ]


@pytest.mark.parametrize("gone", [{"chosen": None, "batch": None, "verdict": ChoiceVerdict.NONE}])
def test_without_a_choice_only_bounds_are_named(gone: dict[str, object]) -> None:
    assert batching.what_would_change(sizes(**gone)) == [
        "objectives.ttft_ms of 70.0 or more may admit batch 8"
    ]
