"""Which candidate is chosen, and why the others are not."""

from __future__ import annotations

import math

import pytest
from figures import svg_of, without_figures
from inline_snapshot import snapshot
from trials import candidate, request, scores, trial

from tasks.core.errors import EngineError, SpecError
from tasks.core.spec_kinds import CandidateFormat, QuantizationPolicy
from tasks.core.verdicts import ChoiceVerdict
from tasks.quantization import report
from tasks.quantization.models import Measured, QuantizationResult, Trial
from tasks.quantization.plan import (
    check_baseline,
    check_order,
    choose,
    front,
    judge,
    measured_tokens,
    refuse_memory,
    window_slots,
    window_tokens,
)

F16, Q8, Q4 = CandidateFormat.F16, CandidateFormat.Q8_0, CandidateFormat.Q4_0
BASE = trial(-3.0, 100.0)


def judged(form: CandidateFormat, size: int, measured: Trial, tolerance: float = 0.02) -> Measured:
    return judge(candidate(form, size), measured, BASE, request(tolerance=tolerance))


def reasons(result: QuantizationResult) -> dict[str, str | None]:
    return {row.format.value: row.rejected or row.passed_over for row in result.measured}


def test_the_fastest_within_the_tolerance_is_chosen() -> None:
    result = choose(
        [
            judged(F16, 16, BASE),
            judged(Q8, 8, trial(-3.001, 150, 151, 149)),
            judged(Q4, 4, trial(-3.5, 400, 401, 399)),
        ],
        request(),
    )
    assert result.verdict == ChoiceVerdict.CHOSEN
    assert result.candidate.format == Q8
    assert reasons(result) == snapshot(
        {
            "f16": "33% slower than q8_0",
            "q8_0": None,
            "q4_0": "loses 64.87% by perplexity (up to 64.87%); 2.00% accepted",
        }
    )
    assert result.reason == snapshot("the fastest of 2 within the tolerance")
    assert report.headline(result) == snapshot("q8_0, 0.0 MB, keeps 99.90% or more, 150 tokens/s")
    assert without_figures(report.markdown(result)) == snapshot("""\
# Quantization: chosen

**q8_0**, by the policy latency: the fastest of 2 within the tolerance.

| format | size | tokens/s | kept | perplexity | loss | KL nats | same top |
|---|---:|---:|---:|---:|---:|---:|---:|
| f16 | 0.0 MB | 100 ± 0% | baseline | 20.086 | - | - | - |
| **q8_0** | 0.0 MB | 150 ± 1% | ≥ 99.90% | 20.106 | +0.10% ± 0.00% | 0.00000 ± 0.00000 | 100.00% ± 0.00% |
| q4_0 | 0.0 MB | 400 ± 0% | ≥ 35.13% | 33.115 | +64.87% ± 0.00% | 0.01195 ± 0.00000 | 100.00% ± 0.00% |

## Why not the others

- f16: 33% slower than q8_0
- q4_0: loses 64.87% by perplexity (up to 64.87%); 2.00% accepted

![Quality, speed and size of each format](data:image/svg+xml;base64,…)

A format may lose 2.00% of the quality of f16: by perplexity, by KL divergence and by the tokens it would choose, each at the worse end of its 95 % interval. Measured on 128 tokens of the held-out text, through the served engine. KL divergence is estimated from the likeliest tokens, all others as one (ADR 43).
""")
    assert {name: (number.value, number.unit) for name, number in report.numbers(result).items()} == snapshot(
        {
            "size_bytes": (8.0, "byte"),
            "tokens_per_s": (150.0, "token/s"),
            "perplexity": (20.105632506227742, "1"),
            "quality_loss": (0.0010005001667081626, "1"),
            "kl_divergence": (5.8568076260726035e-08, "nat/token"),
            "agreement": (1.0, "1"),
            "quality_kept_low": (0.9989994998332918, "1"),
        }
    )
    assert QuantizationResult.model_validate(result.model_dump(mode="json")) == result


def test_as_fast_within_the_noise_means_the_smaller() -> None:
    rows = [
        judged(F16, 16, BASE),
        judged(Q8, 8, trial(-3.0, 200, 210, 190)),
        judged(Q4, 4, trial(-3.0, 195, 196, 194)),
    ]
    result = choose(rows, request())
    assert result.candidate.format == Q4
    assert reasons(result) == snapshot(
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
    assert choose(rows, request()).candidate.format == F16


def test_better_than_the_baseline_is_no_merit() -> None:
    rows = [judged(F16, 16, BASE), judged(Q8, 8, trial(-2.0, 50)), judged(Q4, 4, trial(-3.0, 120))]
    assert choose(rows, request(tolerance=0.0)).candidate.format == Q4


def test_none_when_nothing_qualifies() -> None:
    dead = Measured(format=Q8, rejected="the engine died while serving (exit status 1)")
    worse = judged(Q4, 4, trial(-4.0, 400))
    result = choose([dead, worse], request())
    assert result.verdict == ChoiceVerdict.NONE
    assert result.chosen is None
    assert result.reason == snapshot(
        "q8_0: the engine died while serving (exit status 1); q4_0: loses 171.83% by perplexity (up to 171.83%), 3.94% by divergence (up to 3.94%); 2.00% accepted"
    )
    assert report.headline(result) == "none of 2 formats qualifies"
    assert report.numbers(result) == {}
    assert without_figures(report.markdown(result)) == snapshot("""\
# Quantization: none

q8_0: the engine died while serving (exit status 1); q4_0: loses 171.83% by perplexity (up to 171.83%), 3.94% by divergence (up to 3.94%); 2.00% accepted.

| format | size | tokens/s | kept | perplexity | loss | KL nats | same top |
|---|---:|---:|---:|---:|---:|---:|---:|
| q8_0 | - | - | - | - | - | - | - |
| q4_0 | 0.0 MB | 400 ± 0% | ≥ 0.00% | 54.598 | +171.83% ± 0.00% | 0.04015 ± 0.00000 | 100.00% ± 0.00% |

## Why none

- q8_0: the engine died while serving (exit status 1)
- q4_0: loses 171.83% by perplexity (up to 171.83%), 3.94% by divergence (up to 3.94%); 2.00% accepted

Quality was not compared.
""")


def test_one_format_needs_no_text() -> None:
    asked = request(F16, text=None)
    silent = Trial(tokens_per_s=(100,))
    check_baseline(asked, silent)
    result = choose([judge(candidate(F16, 16), silent, silent, asked)], asked)
    assert result.candidate.format == F16
    assert result.reason == "the only one asked for"
    assert "Quality was not compared" in report.markdown(result)
    assert set(report.numbers(result)) == {"size_bytes", "tokens_per_s"}


def test_a_baseline_that_tells_nothing_is_a_fault() -> None:
    with pytest.raises(SpecError, match="only 3 tokens"):
        check_baseline(request(), Trial(scores=scores(-1, -1, -1), tokens_per_s=(1,)))
    with pytest.raises(EngineError, match="did not return usable probabilities"):
        check_baseline(request(), Trial(scores=scores(*[math.nan] * 100), tokens_per_s=(1,)))


@pytest.mark.parametrize(
    ("right", "of", "tolerance", "message"),
    [
        (0, 50, 0.02, "the baseline solves none of the 50 tasks in tuning.task_set"),
        (40, 50, 0.02, "too few to show that a candidate loses at most 2.00%"),
        (40, 50, 0.05, None),
        (99, 99, 0.02, None),
    ],
)
def test_too_few_tasks_to_show_anything_are_refused(
    right: int, of: int, tolerance: float, message: str | None
) -> None:
    baseline = trial(-3.0, answers=[number < right for number in range(of)])
    asked = request(tolerance=tolerance)
    if message is None:
        check_baseline(asked, baseline)
        return
    with pytest.raises(SpecError, match=message):
        check_baseline(asked, baseline)


def test_lost_answers_are_refused_and_the_baseline_never_is() -> None:
    right = [True] * 180 + [False] * 20
    baseline = trial(-3.0, answers=right)
    worse = trial(-3.0, answers=[*right[:170], *[False] * 30])
    asked = request()
    rows = [
        judge(candidate(F16, 16), baseline, baseline, asked),
        judge(candidate(Q8, 8), worse, baseline, asked),
    ]
    result = choose(rows, asked)
    assert reasons(result) == snapshot(
        {"f16": None, "q8_0": "loses 5.56% by right answers (up to 8.99%); 2.00% accepted"}
    )
    assert "and may lose 2.00% of the tasks that the baseline solves" in report.markdown(result)
    assert report.numbers(result)["right_answers"].value == 0.9


def test_each_policy_has_its_branch() -> None:
    rows = [
        judged(F16, 16, BASE),
        judged(Q8, 8, trial(-3.0005, 110)),
        judged(CandidateFormat.Q5_0, 5, trial(-3.01, 150)),
        judged(Q4, 4, trial(-3.012, 140)),
        judged(CandidateFormat.Q4_1, 3, trial(-3.1, 500)),
    ]
    found = {}
    for policy in QuantizationPolicy:
        result = choose(rows, request(policy=policy))
        found[policy.value] = (result.reason, reasons(result))
    assert found == snapshot(
        {
            "accuracy": (
                "of 2 shown to keep 99.9% of the quality, the fastest",
                {
                    "f16": "9% slower than q8_0",
                    "q8_0": None,
                    "q5_0": "may lose 1.01% of quality, and accuracy comes first",
                    "q4_0": "may lose 1.21% of quality, and accuracy comes first",
                    "q4_1": "loses 10.52% by perplexity (up to 10.52%); 2.00% accepted",
                },
            ),
            "latency": (
                "the fastest of 4 within the tolerance",
                {
                    "f16": "33% slower than q5_0",
                    "q8_0": "27% slower than q5_0",
                    "q5_0": None,
                    "q4_0": "7% slower than q5_0",
                    "q4_1": "loses 10.52% by perplexity (up to 10.52%); 2.00% accepted",
                },
            ),
            "resources": (
                "the smallest of 4 within the tolerance",
                {
                    "f16": "300% larger than q4_0",
                    "q8_0": "100% larger than q4_0",
                    "q5_0": "25% larger than q4_0",
                    "q4_0": None,
                    "q4_1": "loses 10.52% by perplexity (up to 10.52%); 2.00% accepted",
                },
            ),
        }
    )
    assert front(rows) == {F16, Q8, CandidateFormat.Q5_0, Q4}


def test_accuracy_first_keeps_to_the_baseline_where_nothing_else_is_shown_to_be_as_good() -> None:
    rows = [judged(F16, 16, BASE), judged(Q8, 8, trial(-3.01, 200))]
    result = choose(rows, request(policy="accuracy"))
    assert result.candidate.format == F16
    assert result.reason == snapshot("no other is shown to keep 99.9% of its quality")


def test_the_figure_tells_what_became_of_each() -> None:
    rows = [judged(F16, 16, BASE), judged(Q8, 8, trial(-3.001, 150)), judged(Q4, 4, trial(-3.5, 400))]
    svg = svg_of(report.markdown(choose(rows, request())))
    assert svg.count("<circle") == 3 + 1 + 4 + 1  # dots, the chosen one's halo; the legend with its own
    assert "q4_0 ↓ " in svg
    assert "of f16's quality kept".replace("'", "&#x27;") in svg


def test_the_baseline_is_no_coarser_than_what_is_compared_with_it() -> None:
    f16, bf16, q8_0, q4_0 = (CandidateFormat(name) for name in ("f16", "bf16", "q8_0", "q4_0"))
    sizes = {f16: 2000, bf16: 2001, q8_0: 1060, q4_0: 600}
    for fine in ((f16, bf16, q8_0), (q8_0, q4_0), (q4_0,)):
        check_order(fine, sizes)
    with pytest.raises(
        SpecError, match="the baseline q4_0 is less exact than q8_0, f16, but quality"
    ) as caught:
        check_order((q4_0, q8_0, f16), sizes)
    assert caught.value.fix == "put f16 first in tuning.candidates"


def test_what_cannot_fit_is_not_made() -> None:
    assert refuse_memory(10**9, 2 * 10**9) is None
    assert refuse_memory(10**9, None) is None
    assert refuse_memory(5 * 10**9, 2 * 10**9) == snapshot(
        "not made: it would need 5.00 GB of memory at the least, 2.00 GB may be used"
    )


def test_windows_keep_the_cache_small() -> None:
    assert (window_tokens(256), window_slots(2048, 256)) == (248, 4)
    assert (window_tokens(131_072), window_slots(512, 1024)) == (1024, 1)
    assert measured_tokens(request(tokens=2048, context=256)) == 1024
    assert measured_tokens(request(tokens=2048, context=8192)) == 8192
