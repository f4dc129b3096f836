"""Every verdict is the expert's, for the expert's reasons."""

from __future__ import annotations

import pytest
from compatibility_cases import CASES as OTHER_CASES
from compatibility_cases import CURRENT, GONE, Case
from driver_cases import DRIVER_CASES

from tasks.compatibility.models import Survey
from tasks.compatibility.plan import judge
from tasks.compatibility.rules import Tables, load_tables
from tasks.core.facts import Facts

CASES = [*OTHER_CASES, *DRIVER_CASES]


def run(case: Case, tables: Tables) -> tuple[str, dict[str, str]]:
    values = {key: value for key, value in {**CURRENT, **case.facts}.items() if value is not GONE}
    survey = Survey(
        facts=Facts.model_validate(values), sightings=case.sightings, fault=case.fault, warning=case.warning
    )
    result = judge(survey, case.measurements, tables)
    return result.verdict.value, {finding.rule: finding.severity for finding in result.findings}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_expert_agrees(case: Case) -> None:
    assert run(case, load_tables()) == (case.verdict, case.rules), case.why


def test_cases_are_told_apart() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 120
