"""Quality relative to the baseline: what each measure is, and that its interval's far end decides."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inline_snapshot import snapshot
from trials import candidate, request, score, scores, trial

from tasks.core.spec_kinds import CandidateFormat
from tasks.quantization.intervals import mean_interval, share_lost
from tasks.quantization.models import Quality, Score, Trial, WeightError
from tasks.quantization.plan import judge
from tasks.quantization.quality import ROUNDING, compare, kept, reject_weights, worst_weight

F16, Q8, Q4 = CandidateFormat.F16, CandidateFormat.Q8_0, CandidateFormat.Q4_0


def compared(ours: tuple[Score, ...], theirs: tuple[Score, ...]) -> Quality:
    found = compare(Trial((1.0,), ours), Trial((1.0,), theirs))
    assert found is not None
    return found


@given(st.lists(st.tuples(st.floats(-20, 0), st.floats(-20, 0)), min_size=2, max_size=50))
def test_loss_is_the_ratio_of_perplexities(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = scores(*(pair[0] for pair in pairs)), scores(*(pair[1] for pair in pairs))
    quality = compared(ours, theirs)
    ratio = quality.perplexity / compared(theirs, theirs).perplexity
    assert quality.loss.value == pytest.approx(ratio - 1, rel=1e-6, abs=1e-9)
    assert quality.loss.low <= quality.loss.value <= quality.loss.high


def test_divergence_is_that_of_the_named_tokens_with_all_others_as_one() -> None:
    theirs = score(7, math.log(0.5), {7: math.log(0.5), 8: math.log(0.3)})
    ours = score(7, math.log(0.4), {8: math.log(0.45), 7: math.log(0.4)})
    quality = compared((ours,) * 64, (theirs,) * 64)
    bound = 0.5 * math.log(0.5 / 0.4) + 0.3 * math.log(0.3 / 0.45) + 0.2 * math.log(0.2 / 0.15)
    assert quality.coverage == pytest.approx(0.8)
    assert quality.divergence.value == pytest.approx(bound / 0.8, rel=1e-5)
    assert quality.agreement.value == 0
    assert quality.choice_loss.value == pytest.approx(
        1 - 0.3 / 0.5
    )  # 8 was chosen, which the baseline gives 0.3


def test_a_choice_that_the_baseline_does_not_even_name_counts_in_full() -> None:
    theirs = score(7, math.log(0.5), {7: math.log(0.5)})
    ours = score(7, math.log(0.1), {9: math.log(0.6), 7: math.log(0.1)})
    assert compared((ours,) * 64, (theirs,) * 64).choice_loss.value == 1


def test_a_model_is_as_good_as_itself() -> None:
    same = trial(-3.0, answers=[True, False])
    quality = compare(same, same)
    assert quality is not None
    assert kept(quality) == kept(quality).model_copy(update={"value": 1, "low": 1, "high": 1})


@pytest.mark.parametrize("broken", [math.nan, -math.inf, -3.4e38])
def test_probabilities_that_are_no_numbers_are_rejected(broken: float) -> None:
    base = Trial((1.0,), scores(-3.0, -3.0))
    for found in (scores(-3.0, broken), (score(100, -3.0, {1: broken}), score(101, -3.0))):
        row = judge(candidate(Q4, 1), Trial((1.0,), found), base, request(tolerance=0.5))
        if broken != -3.4e38 or found[1].logprob == broken:
            assert row.rejected == "garbage: its probabilities are not numbers"
            assert row.quality is None


def test_the_far_end_of_the_interval_decides() -> None:
    """The same mean loss of 1 %: steady it is within 2 %, scattered it may be more."""
    base = trial(-3.0)
    steady = Trial((1.0,), scores(*(one.logprob - 0.01 for one in base.scores)))
    scattered = scores(*(one.logprob - 0.01 - 0.1 * math.sin(n / 9) for n, one in enumerate(base.scores)))
    asked = request(tolerance=0.02)
    assert judge(candidate(Q8, 1), steady, base, asked).rejected is None
    assert judge(candidate(Q8, 1), Trial((1.0,), scattered), base, asked).rejected == snapshot(
        "may lose too much: 1.74% by perplexity (up to 7.46%); 2.00% accepted, and 128 tokens cannot tell"
    )


def test_intervals_of_segments() -> None:
    assert mean_interval([1.0] * 31).high == math.inf  # one segment tells no scatter
    flat = mean_interval([1.0] * 32)
    assert (flat.low, flat.value, flat.high) == (1, 1, 1)
    blocks = mean_interval([float(number // 64 % 2) for number in range(2048)])
    single = mean_interval([float(number % 2) for number in range(2048)])
    assert blocks.value == single.value == 0.5
    assert blocks.high - blocks.low > 0.3  # neighbours alike: 32 independent values, not 2048
    assert single.high == single.low


def test_paired_answers() -> None:
    same = share_lost([True] * 100, [True] * 100)
    assert same.value == 0
    assert same.high == pytest.approx(1.96 / 102)  # 100 tasks cannot show that less than 2 % are lost
    worse = share_lost([True] * 150 + [False] * 50, [True] * 170 + [False] * 30)
    assert worse.value == pytest.approx(20 / 170)
    assert worse.low < 20 / 170 < worse.high
    assert share_lost([False] * 10, [True] * 10).high >= 1


def test_damaged_weights_are_named() -> None:
    assert reject_weights(WeightError(tensor="a", error=0.006), Q8, F16) is None
    assert reject_weights(WeightError(tensor="a", error=0.09), Q4, F16) is None
    assert reject_weights(worst_weight({"a": 0.005, "blk.0.attn_q.weight": 1.0}), Q8, F16) == snapshot(
        "damaged: its tensor blk.0.attn_q.weight differs from that of f16 by 100% of its own deviation, rounding makes 4% at most"
    )
    assert reject_weights(worst_weight({"a": 0.005, "b": None, "c": 9.0}), Q8, F16) == snapshot(
        "damaged: its tensor b cannot be compared with that of f16"
    )
    assert set(ROUNDING) == set(CandidateFormat)
