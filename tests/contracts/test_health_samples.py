"""The contract on the health samples, by the real Great Expectations."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

import pytest
from ulid import ULID

from blocks.expectations.table_contract import Validator
from blocks.storage.record_frame import to_frame
from tasks.core.contract import ContractResult
from tasks.core.records import Number, Record
from tasks.core.verdicts import StageName
from tasks.health import plan, report

START = datetime(2026, 3, 1, tzinfo=UTC)
GOOD = {"alive": 1.0, "restarts": 0.0, "memory_bytes": 5e8, "latency_ms": 12.0, "failed": 0.0}


def sample(number: int, **changed: float | None) -> Record:
    """The record of a nightly check."""
    values = {**GOOD, **changed}
    at = START + timedelta(days=number)
    return Record(
        id=str(ULID.from_datetime(at)),
        at=at,
        stage=StageName.HEALTH,
        subject="chat",
        host_fingerprint="h",
        inputs_digest="d",
        outcome="healthy",
        seconds=0.2,
        numbers={
            name: Number(value=value, unit=report.NUMBERS[name])
            for name, value in values.items()
            if value is not None
        },
    )


def held(records: list[Record]) -> ContractResult:
    return Validator().check("table", to_frame(records, report.NUMBERS), plan.expectations())


def broken(records: list[Record]) -> set[tuple[str | None, str]]:
    return {
        (breach.column, breach.expectation.removeprefix("expect_column_values_to_"))
        for breach in held(records).breaches
    }


def test_samples_as_checks_write_them_keep_the_contract() -> None:
    result = held([sample(number, latency_ms=10.0 + number) for number in range(30)])
    assert result == ContractResult(rows=30, expectations=len(plan.expectations()))
    assert os.environ["GX_ANALYTICS_ENABLED"] == "false"


def test_the_first_sample_keeps_it_too() -> None:
    assert broken([sample(0)]) == set()


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        pytest.param([sample(2), sample(1)], {("at", "be_increasing")}, id="a clock that was set back"),
        pytest.param(
            [sample(1)] * 2, {("id", "be_unique"), ("at", "be_increasing")}, id="a record read twice"
        ),
        pytest.param([sample(1, latency_ms=0.0)], {("latency_ms", "be_between")}, id="an answer in no time"),
        pytest.param(
            [sample(1, memory_bytes=512.0)], {("memory_bytes", "be_between")}, id="megabytes for bytes"
        ),
        pytest.param(
            [sample(number, memory_bytes=None) for number in range(3)],
            {("memory_bytes", "not_be_null")},
            id="a probe that went blind",
        ),
        pytest.param([sample(1, restarts=-1.0)], {("restarts", "be_between")}, id="a count below zero"),
        pytest.param([sample(1, failed=6.0)], {("failed", "be_between")}, id="more failures than requests"),
        pytest.param(
            [sample(1, gpu_temperature_c=900.0)],
            {("gpu_temperature_c", "be_between")},
            id="a sensor gone mad",
        ),
        pytest.param(
            [sample(1).model_copy(update={"outcome": "fine"})],
            {("outcome", "be_in_set")},
            id="an unknown verdict",
        ),
        pytest.param(
            [sample(1).model_copy(update={"seconds": 4000.0})],
            {("seconds", "be_between")},
            id="a check that hung",
        ),
    ],
)
def test_what_breaks_it(records: list[Record], expected: set[tuple[str | None, str]]) -> None:
    assert broken(records) == expected


def test_a_column_of_another_type_breaks_it() -> None:
    frame = to_frame([sample(1)], report.NUMBERS)
    frame["latency_ms"] = frame["latency_ms"].astype(str)
    breaches = Validator().check("table", frame, plan.expectations()).breaches
    assert ("expect_column_values_to_be_of_type", "latency_ms") in {
        (breach.expectation, breach.column) for breach in breaches
    }


def test_a_missing_column_breaks_it() -> None:
    frame = to_frame([sample(1)], report.NUMBERS).drop(columns=["restarts"])
    (breach,) = Validator().check("table", frame, plan.expectations()).breaches
    assert (breach.column, breach.observed) == ("restarts", "the column is missing")


def test_a_breach_says_what_was_there() -> None:
    (breach,) = held([sample(1), sample(2, latency_ms=-3.0)]).breaches
    assert breach.observed == "1 of 2 values do not fit (-3.0)"


def test_every_expectation_says_why() -> None:
    assert [row for row in plan.expectations() if not row.get("why")] == []
