"""When a look at the registry asks for a redeploy."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tasks.core.verdicts import RegistryVerdict
from tasks.registry import report
from tasks.registry.models import Attempt, Look, PastLook, Rollback
from tasks.registry.plan import GRACE, MAX_FAULTS, announce, is_news, judge

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MOVED = Look(service="chat", model="models:/m@champion", wanted_version="2", serving_version="1")


def look(**changes: Any) -> Look:
    return MOVED.model_copy(update=changes)


def announced(attempt: int, ago: timedelta) -> PastLook:
    return PastLook(
        at=NOW - ago,
        wanted_version="2",
        serving_version="1",
        reason="the alias moved",
        announcement=announce(MOVED, attempt, NOW - ago),
    )


def ended(outcome: str, ago: timedelta = timedelta(0), version: str = "2") -> Attempt:
    return Attempt(at=NOW - ago, version=version, outcome=outcome, said_no=outcome == "refused")


def test_what_serves_is_current() -> None:
    result = judge(look(serving_version="2"), NOW)
    assert (result.verdict, result.announcement) == (RegistryVerdict.CURRENT, None)


def test_a_moved_alias_is_announced_once() -> None:
    first = judge(MOVED, NOW)
    assert first.verdict == RegistryVerdict.MOVED
    assert first.announcement is not None
    assert first.announcement.attempt == 1
    again = judge(look(past=(announced(1, timedelta(0)),)), NOW + timedelta(seconds=30))
    assert (again.announcement, again.reason) == (None, "a redeploy was requested")


def test_the_events_id_depends_on_version_and_attempt_only() -> None:
    one, same = announce(MOVED, 1, NOW), announce(MOVED, 1, NOW + GRACE)
    assert one.event_id == same.event_id
    assert announce(MOVED, 2, NOW).event_id != one.event_id
    assert announce(look(wanted_version="3"), 1, NOW).event_id != one.event_id


def test_a_service_that_never_served_is_announced() -> None:
    assert judge(look(serving_version=None), NOW).announcement is not None


@pytest.mark.parametrize(
    ("changes", "attempt", "reason"),
    [
        ({"deploying": True}, None, "a deploy, a rollback or a recovery of this service is running"),
        ({"past": (announced(1, GRACE),)}, 2, "no deploy followed the last event"),
        (
            {"past": (announced(1, timedelta(seconds=50)),), "attempts": (ended("fault"),)},
            2,
            "the last deploy failed",
        ),
        (
            {"past": (announced(1, GRACE * 9),), "attempts": (ended("refused", GRACE),)},
            None,
            "a deploy of version 2 was refused: move the alias or change the objectives",
        ),
        (
            {"past": (announced(1, GRACE * 9),), "attempts": (ended("serving", GRACE),)},
            None,
            "version 2 served and was rolled back: move the alias or deploy",
        ),
        (
            {"rollback": Rollback(at=NOW - GRACE, version="2")},
            None,
            "version 2 served and was rolled back: move the alias or deploy",
        ),
        ({"rollback": Rollback(at=NOW - GRACE, version="3")}, 1, "the alias moved"),
        (
            {"past": (announced(1, GRACE * 9),), "attempts": (ended("fault", GRACE),) * MAX_FAULTS},
            None,
            f"{MAX_FAULTS} deploys of version 2 failed: find out why, then deploy",
        ),
        # What was tried before the event does not count as tried for it, nor what was tried of another version.
        (
            {"past": (announced(1, timedelta(seconds=50)),), "attempts": (ended("refused", GRACE),)},
            None,
            "a redeploy was requested",
        ),
        (
            {"past": (announced(1, timedelta(seconds=50)),), "attempts": (ended("refused", version="7"),)},
            None,
            "a redeploy was requested",
        ),
    ],
)
def test_what_was_tried_decides(changes: dict[str, Any], attempt: int | None, reason: str) -> None:
    result = judge(look(**changes), NOW)
    assert (result.announcement.attempt if result.announcement else None, result.reason) == (attempt, reason)


def test_an_event_for_another_version_does_not_count() -> None:
    other = look(wanted_version="7")
    past = announced(1, GRACE * 9).model_copy(
        update={"wanted_version": "7", "announcement": announce(other, 3, NOW - GRACE * 9)}
    )
    result = judge(look(past=(past,)), NOW)
    assert result.announcement is not None
    assert result.announcement.attempt == 1


def test_only_what_the_last_record_does_not_say_is_news() -> None:
    waiting = announced(1, GRACE / 2).model_copy(update={"reason": "a redeploy was requested"})
    current = look(serving_version="2")
    assert is_news(judge(MOVED, NOW), MOVED)
    assert not is_news(judge(current, NOW), current)
    asked = look(past=(waiting,))
    assert not is_news(judge(asked, NOW), asked)
    for changes in ({"deploying": True}, {"serving_version": "0"}, {"serving_version": "2"}):
        other = asked.model_copy(update=changes)
        assert is_news(judge(other, NOW), other)


def test_the_report_names_versions_and_event() -> None:
    moved, current = judge(MOVED, NOW), judge(look(serving_version="2"), NOW)
    assert report.headline(moved) == "models:/m@champion: wants 2, serves 1"
    assert report.numbers(moved)["attempt"].value == 1
    assert report.numbers(current) == {}
    assert "no event" in report.markdown(current)
    assert moved.announcement is not None
    assert moved.announcement.event_id in report.markdown(moved)
