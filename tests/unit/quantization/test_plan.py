"""Which candidate is chosen, and why the others are not."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from figures import without_figures
from hypothesis import given
from hypothesis import strategies as st
from inline_snapshot import snapshot

from tasks.core.errors import EngineError, SpecError
from tasks.core.spec import CandidateFormat
from tasks.core.verdicts import ChoiceVerdict
from tasks.quantization import report
from tasks.quantization.models import Candidate, Measured, QuantizationResult, Score, Trial
from tasks.quantization.plan import (
    check_baseline,
    choose,
    compare,
    judge,
    window_slots,
    window_tokens,
)

F16, Q8, Q4 = CandidateFormat.F16, CandidateFormat.Q8_0, CandidateFormat.Q4_0


def scores(*logprobs: float, top: int = 1) -> tuple[Score, ...]:
    return tuple(Score(token=number, logprob=value, top=top) for number, value in enumerate(logprobs))


def candidate(form: CandidateFormat, size: int) -> Candidate:
    return Candidate(format=form, path=Path(f"/c/{form}"), digest="sha256:x", size_bytes=size)


def trial(mean: float, *speeds: float, count: int = 100, top: int = 1) -> Trial:
    wobble = (mean + 0.5 * (-1) ** number for number in range(count))
    return Trial(scores=scores(*wobble, top=top), tokens_per_s=speeds or (100.0,))


BASE = trial(-3.0, 100.0)


def judged(form: CandidateFormat, size: int, measured: Trial, tolerance: float = 0.02) -> Measured:
    return judge(candidate(form, size), measured, BASE, tolerance)


def test_quality_is_compared_token_by_token() -> None:
    base = scores(-1.0, -2.0, -3.0)
    worse = (Score(0, -1.2, 1), Score(1, -2.0, 1), Score(2, -3.4, 9))
    quality = compare(worse, base)
    assert quality.perplexity == pytest.approx(math.exp(2.2))
    assert quality.loss == pytest.approx(math.exp(0.2) - 1)
    assert quality.loss == pytest.approx(quality.perplexity / compare(base, base).perplexity - 1)
    assert quality.loss_error == pytest.approx(math.exp(0.2) * 0.2 / math.sqrt(3))
    assert quality.agreement == pytest.approx(2 / 3)
    assert quality.tokens == 3


@given(st.lists(st.tuples(st.floats(-20, 0), st.floats(-20, 0)), min_size=2, max_size=50))
def test_loss_is_the_ratio_of_perplexities(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = scores(*(pair[0] for pair in pairs)), scores(*(pair[1] for pair in pairs))
    ratio = compare(ours, ours).perplexity / compare(theirs, theirs).perplexity
    assert compare(ours, theirs).loss == pytest.approx(ratio - 1, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("broken", [math.nan, -math.inf, -3.4e38])
def test_probabilities_that_are_no_numbers_are_rejected(broken: float) -> None:
    found = judge(
        candidate(Q4, 1),
        Trial(scores=scores(-3.0, broken), tokens_per_s=(100,)),
        Trial(scores=scores(-3.0, -3.0), tokens_per_s=(100,)),
        0.5,
    )
    assert found.rejected == "its probabilities are no numbers"
    assert found.quality is None


def test_the_fastest_within_the_tolerance_is_chosen() -> None:
    result = choose(
        [
            judged(F16, 16, BASE),
            judged(Q8, 8, trial(-3.001, 150, 151, 149)),
            judged(Q4, 4, trial(-3.5, 400, 401, 399, top=2)),
        ],
        0.02,
    )
    assert result.verdict == ChoiceVerdict.CHOSEN
    assert result.candidate.format == Q8
    assert {row.format.value: row.rejected or row.passed_over for row in result.measured} == snapshot(
        {"f16": "33% slower than q8_0", "q8_0": None, "q4_0": "loses 64.87% of quality, 2.00% are accepted"}
    )
    assert result.reason == snapshot("the fastest of 2 within the tolerance")
    assert report.headline(result) == snapshot("q8_0, 0.0 MB, quality -0.10%, 150 tokens/s")
    assert without_figures(report.markdown(result)) == snapshot("""\
# Quantization: chosen

**q8_0**: the fastest of 2 within the tolerance.

| format | size | perplexity | loss | same top token | tokens/s |
|---|---:|---:|---:|---:|---:|
| f16 | 0.0 MB | 20.086 | baseline | 100.0% | 100 ± 0% |
| **q8_0** | 0.0 MB | 20.106 | +0.10% ± 0.00% | 100.0% | 150 ± 1% |
| q4_0 | 0.0 MB | 33.115 | +64.87% ± 0.00% | 0.0% | 400 ± 0% |

## Why not the others

- f16: 33% slower than q8_0
- q4_0: loses 64.87% of quality, 2.00% are accepted

![Speed of one request at a time](data:image/svg+xml;base64,…)

A format may lose 2.00% of the quality of f16. Quality is perplexity on 100 tokens of the held-out text, through the served engine.
""")
    assert {name: (number.value, number.unit) for name, number in report.numbers(result).items()} == snapshot(
        {
            "size_bytes": (8.0, "byte"),
            "tokens_per_s": (150.0, "token/s"),
            "perplexity": (20.10563250622773, "1"),
            "quality_loss": (0.0010005001667081626, "1"),
            "agreement": (1.0, "1"),
        }
    )
    assert QuantizationResult.model_validate(result.model_dump(mode="json")) == result


def test_as_fast_within_the_noise_means_the_smaller() -> None:
    rows = [
        judged(F16, 16, BASE),
        judged(Q8, 8, trial(-3.0, 200, 210, 190)),
        judged(Q4, 4, trial(-3.0, 195, 196, 194)),
    ]
    result = choose(rows, 0.02)
    assert result.candidate.format == Q4
    assert {row.format.value: row.rejected or row.passed_over for row in result.measured} == snapshot(
        {
            "f16": "49% slower than q4_0",
            "q8_0": "no faster than q4_0 within the noise, and larger",
            "q4_0": None,
        }
    )
    assert result.reason == snapshot(
        "the smallest of those as fast as q8_0, within the noise of the measurement"
    )


def test_however_unsteady_a_quarter_less_is_slower() -> None:
    rows = [judged(F16, 16, trial(-3.0, 50, 300, 550)), judged(Q8, 8, trial(-3.0, 200, 210, 190))]
    assert choose(rows, 0.02).candidate.format == F16


def test_better_than_the_baseline_is_no_merit() -> None:
    rows = [judged(F16, 16, BASE), judged(Q8, 8, trial(-2.0, 50)), judged(Q4, 4, trial(-3.0, 120))]
    assert choose(rows, 0.0).candidate.format == Q4


def test_none_when_nothing_qualifies() -> None:
    dead = Measured(format=Q8, rejected="the engine died while serving (exit status 1)")
    worse = judged(Q4, 4, trial(-4.0, 400))
    result = choose([dead, worse], 0.02)
    assert result.verdict == ChoiceVerdict.NONE
    assert result.chosen is None
    assert result.reason == snapshot(
        "q8_0: the engine died while serving (exit status 1); q4_0: loses 171.83% of quality, 2.00% are accepted"
    )
    assert report.headline(result) == "none of 2 formats qualifies"
    assert report.numbers(result) == {}
    assert without_figures(report.markdown(result)) == snapshot("""\
# Quantization: none

q8_0: the engine died while serving (exit status 1); q4_0: loses 171.83% of quality, 2.00% are accepted.

| format | size | perplexity | loss | same top token | tokens/s |
|---|---:|---:|---:|---:|---:|
| q8_0 | - | - | - | - | - |
| q4_0 | 0.0 MB | 54.598 | +171.83% ± 0.00% | 100.0% | 400 ± 0% |

## Why none

- q8_0: the engine died while serving (exit status 1)
- q4_0: loses 171.83% of quality, 2.00% are accepted

A format may lose 2.00% of the quality of q8_0. Quality was not compared: one format was asked for, and no text given.
""")


def test_one_format_needs_no_text() -> None:
    check_baseline(F16, Trial(tokens_per_s=(100,)), compared=False)
    alone = judge(candidate(F16, 16), Trial(tokens_per_s=(100,)), Trial(tokens_per_s=(100,)), 0.0)
    result = choose([alone], 0.0)
    assert result.candidate.format == F16
    assert result.reason == "the only one asked for"
    assert "Quality was not compared" in report.markdown(result)
    assert set(report.numbers(result)) == {"size_bytes", "tokens_per_s"}


def test_a_baseline_that_tells_nothing_is_a_fault() -> None:
    with pytest.raises(SpecError, match="only 3 tokens"):
        check_baseline(F16, Trial(scores=scores(-1, -1, -1), tokens_per_s=(1,)), compared=True)
    with pytest.raises(EngineError, match="no usable probabilities"):
        check_baseline(F16, Trial(scores=scores(*[math.nan] * 100), tokens_per_s=(1,)), compared=True)


def test_windows_keep_the_cache_small() -> None:
    assert (window_tokens(256), window_slots(2048, 256)) == (256, 4)
    assert (window_tokens(131_072), window_slots(512, 1024)) == (1024, 1)
