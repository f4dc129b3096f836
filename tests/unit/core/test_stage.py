"""What all stages share: the record is the cache, and failures are records."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import pytest
from small_stage import REPORT, Answer, Work, recorder, records, stage

from blocks.host.host_load import ForeignLoad
from tasks.core.errors import ModelError, StageCancelledError
from tasks.core.freshness import measure_anew
from tasks.core.records import Number
from tasks.core.stage import WorkNeededError, records_only, run_stage
from tasks.core.verdicts import StageName


def test_a_good_record_stands_in_for_the_work(slipway_home: Path) -> None:
    work = Work()
    first, second = stage(work), stage(work)
    assert (first.cached, second.cached, work.times) == (False, True, 1)
    assert second.result == first.result
    assert second.record == first.record
    assert len(records()) == 1


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"inputs": {"source": "b"}}, "other inputs"),
        ({"consulted": ("01A",)}, "new knowledge"),
        ({"still_good": lambda result: False}, "outputs that do not verify"),
        ({"still_good": None}, "a stage that is never reused"),
    ],
)
def test_the_work_is_done_again_for(slipway_home: Path, changes: dict[str, Any], why: str) -> None:
    work = Work()
    stage(work)
    assert not stage(work, **changes).cached, why
    assert work.times == 2


def test_a_no_is_no_cache(slipway_home: Path) -> None:
    work = Work("corrupt")
    assert stage(work).says_no
    assert not stage(work).cached


def test_a_later_no_takes_back_an_earlier_yes(slipway_home: Path) -> None:
    stage(Work())
    assert stage(Work("corrupt"), still_good=lambda result: False).says_no
    assert not stage(Work()).cached
    assert stage(Work()).cached


class Neighbour(ForeignLoad):
    """Others use this share of the processors: while the work is done, and afterwards."""

    def __init__(self, meanwhile: float, now: float = 0.0) -> None:
        super().__init__()
        self.share, self.later = meanwhile, now

    def now(self) -> float:
        return self.later


@pytest.fixture
def mindful(slipway_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As users have it: others may use a tenth."""
    monkeypatch.delenv("SLIPWAY_BUSY_SHARE")


@pytest.mark.parametrize(
    ("meanwhile", "now", "cached"),
    [(0.6, 0.0, False), (0.6, 0.5, True), (0.05, 0.0, True), (0.05, 0.9, True)],
    ids=["busy then quiet", "busy still", "quiet", "quiet then busy"],
)
def test_what_was_measured_beside_a_busy_neighbour_is_measured_again_when_it_is_quiet(
    mindful: None, meanwhile: float, now: float, cached: bool
) -> None:
    first = stage(Work(), load=Neighbour(meanwhile))
    again = stage(Work(), load=Neighbour(0.0, now))
    assert again.cached is cached
    marked = meanwhile > 0.1
    assert first.headline.endswith(", under foreign load (60% of the CPUs)") is marked
    newest = records()[-1]
    assert newest.numbers["foreign_load"] == Number(value=meanwhile if cached else 0.0, unit="1")
    assert stage(Work(), load=Neighbour(0.0)).cached is ((cached and not marked) or not cached)


def test_a_host_that_is_always_busy_can_be_told_to_be_as_it_is(
    slipway_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIPWAY_BUSY_SHARE", "0.7")
    assert "foreign" not in stage(Work(), load=Neighbour(0.6)).headline
    assert stage(Work(), load=Neighbour(0.0)).cached


def test_a_stage_measures_anew_where_it_is_asked_to(slipway_home: Path) -> None:
    stage(Work())
    measure_anew([StageName.BATCHING])
    assert stage(Work()).cached
    measure_anew([StageName.STAGING])
    assert not stage(Work()).cached
    measure_anew([])
    assert stage(Work()).cached


def test_a_result_of_another_version_is_not_reused(slipway_home: Path) -> None:
    class Older(Answer):
        gone: int = 1

    run_stage(
        recorder(),
        StageName.STAGING,
        subject="tiny",
        inputs={"source": "a"},
        result_type=Older,
        report=REPORT,
        work=lambda: Older(verdict="verified"),
    )
    assert not stage(Work()).cached


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ModelError("truncated shard", fix="copy it again", detail="header says 12"), "fault"),
        (StageCancelledError("stopped: compatibility says block"), "cancelled"),
        (KeyError("surprise"), "fault"),
    ],
)
def test_a_failure_is_recorded_and_raised(slipway_home: Path, error: Exception, outcome: str) -> None:
    def fail() -> NoReturn:
        raise error

    with pytest.raises(type(error)):
        stage(fail)
    (record,) = records()
    assert record.outcome == outcome
    assert record.evidence["error"]["what"]
    work = Work()
    stage(work)
    assert work.times == 1


def test_a_store_that_is_down_does_not_hide_the_fault(slipway_home: Path) -> None:
    (slipway_home / "records").parent.mkdir(parents=True, exist_ok=True)
    (slipway_home / "records").write_text("in the way: no folder can be made here")

    def fails() -> NoReturn:
        raise ModelError("no such model")

    with pytest.raises(ModelError, match="no such model"):
        stage(fails, still_good=None)


def test_where_only_records_are_wanted_nothing_is_done_and_nothing_written(slipway_home: Path) -> None:
    work = Work()
    with records_only():
        with pytest.raises(WorkNeededError):
            stage(work)
        assert (work.times, records()) == (0, [])
        assert not stage(work, still_good=None).cached  # no record ever answers for it
    with records_only():
        assert stage(work).cached
        with pytest.raises(WorkNeededError):
            stage(work, inputs={"source": "b"})
    assert work.times == 1
