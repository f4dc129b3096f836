"""Public reports of what worked and what failed: the verdict is what happened, and the reason and the way out are right.

`reports/cases.json` and `new.json` hold facts of a host and a stack, `surveys.json` what the sources of a host said. Each case names
the wanted verdicts and its source. `rule` is the finding that gives the wanted reason, `says` are words of its message,
`told` are texts that the printed fixes or ways out must contain, and `never` are texts that the answer must not contain.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from recorded_host import Readings, RecordedHost

from tasks.compatibility.apply import survey_host
from tasks.compatibility.models import CompatibilityResult, Survey
from tasks.compatibility.plan import run_on
from tasks.compatibility.report import way_text
from tasks.compatibility.way_out import advise
from tasks.core.facts import Facts

REPORTS = Path(__file__).parent / "reports"


def load(name: str) -> list[Any]:
    cases = json.loads((REPORTS / name).read_text())
    return [pytest.param(case, id=case["name"].removesuffix(".json")) for case in cases]


def judged(case: dict[str, Any]) -> CompatibilityResult:
    if "readings" not in case:
        return advise(Survey(facts=Facts.model_validate(case["facts"])))
    survey = survey_host(RecordedHost(Readings.model_validate(case["readings"])))
    return advise(run_on(survey, case["packages"], engine=case["engine"]))


@pytest.mark.parametrize("case", [*load("cases.json"), *load("new.json"), *load("surveys.json")])
def test_the_answer_is_what_was_reported(case: dict[str, Any]) -> None:
    result = judged(case)
    messages = {finding.rule: finding.message for finding in result.findings}
    fixes = [finding.fix for finding in result.findings]
    advice = "\n".join([*fixes, *(way_text(way) for way in result.ways_out)])
    assert result.verdict in case["want"], (case["why"], messages)
    if "rule" in case:
        assert case["rule"] in messages, messages
    said = messages.get(case.get("rule", ""), "")
    assert [word for word in case.get("says", ()) if word not in said] == [], said
    assert [text for text in case.get("told", ()) if text not in advice] == [], advice
    answer = "\n".join([*messages.values(), advice])
    assert [text for text in case.get("never", ()) if text in answer] == [], answer
