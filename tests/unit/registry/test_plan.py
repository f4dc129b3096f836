"""When a look at the registry asks for a redeploy."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tasks.core.verdicts import RegistryVerdict
from tasks.registry import report
from tasks.registry.models import Attempt, Look
from tasks.registry.plan import GRACE, MAX_ATTEMPTS, announce, judge

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MOVED = Look(
    service="chat", model="models:/m@champion", wanted_version="2", serving_version="1", deploying=False
)


def look(**changes: Any) -> Look:
    return MOVED.model_copy(update=changes)


def announced(attempt: int, ago: timedelta) -> Any:
    return announce(MOVED, attempt, NOW - ago)


def test_what_serves_is_current() -> None:
    result = judge(look(serving_version="2"), NOW)
    assert (result.verdict, result.announcement) == (RegistryVerdict.CURRENT, None)


def test_a_moved_alias_is_announced_once() -> None:
    first = judge(MOVED, NOW)
    assert first.verdict == RegistryVerdict.MOVED
    assert first.announcement is not None
    assert first.announcement.attempt == 1
    again = judge(look(announced=(first.announcement,)), NOW + timedelta(seconds=30))
    assert again.announcement is None


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
        ({"deploying": True}, None, "a deploy of this service is running"),
        ({"announced": (announced(1, GRACE),)}, 2, "no deploy followed the last event"),
        (
            {
                "announced": (announced(1, timedelta(seconds=50)),),
                "attempts": (Attempt(at=NOW, outcome="fault", said_no=False),),
            },
            2,
            "the last deploy failed",
        ),
        (
            {
                "announced": (announced(1, GRACE * 9),),
                "attempts": (Attempt(at=NOW - GRACE, outcome="refused", said_no=True),),
            },
            None,
            "a deploy of version 2 was refused: move the alias or the objectives",
        ),
        (
            {"announced": (announced(MAX_ATTEMPTS, GRACE * 9),)},
            None,
            f"{MAX_ATTEMPTS} deploys of version 2 were asked for: look at why they fail",
        ),
        # What was tried before the event does not count as tried for it.
        (
            {
                "announced": (announced(1, timedelta(seconds=50)),),
                "attempts": (Attempt(at=NOW - GRACE, outcome="refused", said_no=True),),
            },
            None,
            "a redeploy was asked for",
        ),
    ],
)
def test_a_lost_event_is_made_good_and_a_refusal_is_final(
    changes: dict[str, Any], attempt: int | None, reason: str
) -> None:
    result = judge(look(**changes), NOW)
    assert (result.announcement.attempt if result.announcement else None, result.reason) == (attempt, reason)


def test_an_event_for_another_version_does_not_count() -> None:
    other = announce(look(wanted_version="7"), 3, NOW - GRACE * 9)
    result = judge(look(announced=(other,)), NOW)
    assert result.announcement is not None
    assert result.announcement.attempt == 1


def test_the_report_names_versions_and_event() -> None:
    moved, current = judge(MOVED, NOW), judge(look(serving_version="2"), NOW)
    assert report.headline(moved) == "models:/m@champion: wants 2, serves 1"
    assert report.numbers(moved)["attempt"].value == 1
    assert report.numbers(current) == {}
    assert "no event" in report.markdown(current)
    assert moved.announcement is not None
    assert moved.announcement.event_id in report.markdown(moved)
