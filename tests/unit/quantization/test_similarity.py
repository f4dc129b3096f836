"""Embeddings and scores of a candidate beside the baseline's."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tasks.core.errors import EngineError, SpecError
from tasks.core.model_task import Pooling, Task
from tasks.core.spec_kinds import CandidateFormat
from tasks.core.verdicts import ChoiceVerdict
from tasks.quantization import report
from tasks.quantization.models import Candidate, QuantizationRequest, QuantizationResult, Trial
from tasks.quantization.plan import check_baseline, check_lines, choose, judge, trial_plan
from tasks.quantization.recipe import maker_digest, recipe_of
from tasks.quantization.similarity import compare_rows, cosine, passages, questions, same_order

F16, Q4 = CandidateFormat.F16, CandidateFormat.Q4_0
EMBED, RERANK = Task.EMBED, Task.RERANK
TEXT = "".join(f"The ship number {number} lies at the quay.\n" for number in range(40))


def request(task: Task, tolerance: float = 0.01, text: str | None = TEXT) -> QuantizationRequest:
    return QuantizationRequest(
        model_dir=Path("/m"),
        model_digest="sha256:m",
        formats=(F16, Q4),
        text=text,
        tokens=256,
        context=64,
        tolerance=tolerance,
        task=task,
        pooling=Pooling.MEAN if task is EMBED else None,
    )


def candidate(form: CandidateFormat) -> Candidate:
    return Candidate(format=form, path=Path(f"/c/{form}"), digest=f"sha256:{form}", size_bytes=1)


def turned(angle: float, count: int = 12) -> Trial:
    rows = tuple((math.cos(number + angle), math.sin(number + angle)) for number in range(count))
    return Trial(tokens_per_s=(10.0, 10.0, 10.0), rows=rows)


def chosen_of(task: Task, baseline: Trial, other: Trial) -> QuantizationResult:
    asked = request(task)
    check_baseline(asked, baseline)
    rows = [judge(candidate(F16), baseline, baseline, asked), judge(candidate(Q4), other, baseline, asked)]
    return choose(rows, asked)


@pytest.mark.parametrize(("angle", "kept"), [(0.0, True), (0.1, True), (0.2, False), (math.pi, False)])
def test_an_embedding_may_turn_by_as_much_as_the_tolerance_allows(angle: float, kept: bool) -> None:
    result = chosen_of(EMBED, turned(0.0), turned(angle))
    row = result.measured[1]
    assert row.similarity is not None
    assert row.similarity.kept.value == pytest.approx(math.cos(angle))
    assert row.similarity.count == 12
    assert (row.rejected is None) is kept
    assert result.verdict is ChoiceVerdict.CHOSEN


def test_a_single_text_that_goes_wrong_is_told() -> None:
    rows = list(turned(0.0).rows)
    rows[3] = (-rows[3][0], -rows[3][1])
    result = chosen_of(EMBED, turned(0.0), Trial(tokens_per_s=(10.0,), rows=tuple(rows)))
    similarity = result.measured[1].similarity
    assert similarity is not None
    assert similarity.lowest == pytest.approx(-1.0)
    assert "of the embeddings' direction" in str(result.measured[1].rejected)


def test_a_ranker_is_judged_by_the_order_and_not_by_the_scale() -> None:
    baseline = Trial(tokens_per_s=(5.0,), rows=((1.0, 2.0, 3.0), (9.0, 8.0, 7.0)))
    scaled = Trial(tokens_per_s=(5.0,), rows=((0.1, 0.2, 0.3), (0.9, 0.8, 0.7)))
    result = chosen_of(RERANK, baseline, scaled)
    similarity = result.measured[1].similarity
    assert similarity is not None
    assert similarity.kept.value == 1.0
    assert similarity.difference == pytest.approx(8.1)
    swapped = Trial(tokens_per_s=(5.0,), rows=((2.0, 1.0, 3.0), (9.0, 8.0, 7.0)))
    rejected = chosen_of(RERANK, baseline, swapped).measured[1].rejected
    assert rejected is not None
    assert "of the order of documents" in rejected


def test_what_is_compared_and_how() -> None:
    assert cosine((1.0, 0.0), (0.0, 2.0)) == 0
    assert math.isnan(cosine((0.0,), (1.0,)))
    assert same_order((1, 2, 3), (1, 3, 2)) == pytest.approx(2 / 3)
    assert same_order((1, 1), (2, 2)) == 1
    assert compare_rows(EMBED, ((1.0,),), ((1.0, 2.0),)) is None
    assert compare_rows(EMBED, ((math.nan,),), ((1.0,),)) is None
    assert compare_rows(EMBED, (), ()) is None


def test_answers_that_are_not_numbers_are_garbage() -> None:
    broken = Trial(tokens_per_s=(10.0,), rows=((math.nan, 1.0),) * 12)
    row = chosen_of(EMBED, turned(0.0), broken).measured[1]
    assert row.failure is not None
    with pytest.raises(EngineError, match="did not return numbers"):
        check_baseline(request(EMBED), broken)


@pytest.mark.parametrize(("task", "lines"), [(EMBED, 7), (RERANK, 24)])
def test_too_short_a_text_is_told_before_anything_is_made(task: Task, lines: int) -> None:
    short = "".join(f"{line}\n" for line in TEXT.splitlines()[:lines])
    with pytest.raises(SpecError, match="too few lines"):
        check_lines(request(task, text=short))
    check_lines(request(task).model_copy(update={"tokens": 1024}))
    check_lines(request(task, text=None))


def test_texts_fit_into_the_window_and_say_something() -> None:
    found = passages("short\n\n" + "x" * 100 + "\n" + TEXT + TEXT, tokens=100, window=40)
    assert found[0] == "x" * 40
    assert len(set(found)) == len(found)
    assert all(12 <= len(text) <= 40 for text in found)
    assert sum(map(len, found)) < 400 + 40
    pairs = questions(found, window=40)
    assert all(len(query) <= 20 and len(documents) > 1 for query, documents in pairs)
    plan = trial_plan(request(EMBED))
    assert plan.text is None
    assert len(plan.texts) > 8
    assert trial_plan(request(RERANK)).questions
    assert trial_plan(request(EMBED, text=None)).texts == ()


def test_pages_count_what_was_measured() -> None:
    result = chosen_of(EMBED, turned(0.0), turned(0.01))
    assert "10 texts/s" in report.headline(result)
    assert "keeps" in report.headline(result)
    assert report.numbers(result)["texts_per_s"].unit == "text/s"
    assert report.numbers(result)["similarity"].value == pytest.approx(1.0, abs=1e-3)
    page = report.markdown(result)
    assert "tokens/s" not in page
    assert "measured on 12 lines" in page
    assert "perplexity" not in page


def test_a_model_that_comes_quantized_is_compared_with_its_baseline_alone() -> None:
    """Without one, nothing says what it keeps: it was only compared with itself."""
    as_is, asked = candidate(CandidateFormat.AS_IS), request(EMBED)
    alone, compared = turned(0.0), turned(0.1)
    result = choose([judge(as_is, alone, alone, asked)], asked)
    assert "keeps" not in report.headline(result)
    assert not {"similarity", "quality_kept_low"} & set(report.numbers(result))
    page = report.markdown(result)
    assert "not known" in page
    assert "no baseline to compare it with" in page
    first = judge(candidate(F16), alone, alone, asked).model_copy(update={"compared_only": True})
    result = choose([first, judge(as_is, compared, alone, asked)], asked)
    assert "keeps 99.50% or more" in report.headline(result)
    assert report.numbers(result)["similarity"].value == pytest.approx(math.cos(0.1))


def test_the_file_says_what_it_is_for_so_another_task_is_another_file() -> None:
    embed, rank = request(EMBED), request(RERANK)
    assert recipe_of(embed).worker.name == "make_bert_gguf.py"
    made = {
        maker_digest(one, F16) for one in (embed, rank, embed.model_copy(update={"pooling": Pooling.CLS}))
    }
    assert len(made) == 3
