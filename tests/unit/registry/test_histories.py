"""Months of an alias, a service and its operator, played through look by look."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from tasks.registry.models import Announcement, Attempt, Look, PastLook, Rollback
from tasks.registry.plan import MAX_FAULTS, is_news, judge

EVERY = timedelta(minutes=5)
HOUR = 12
"""Looks in an hour."""


@dataclass
class World:
    """A service that follows an alias. Events reach the trigger while it is `on`; deploys end as `fate` says.

    What a look is told is what `watch-registry` gathers: records of earlier looks (only the newest where nothing
    moved), deploys of the spec that serves, and the rollback that the releases' ages tell.
    """

    alias: str = "1"
    serving: str = "1"
    on: bool = True
    fate: str = "serving"
    now: datetime = datetime(2026, 3, 1, 12, tzinfo=UTC)
    previous: str | None = None
    since: datetime = datetime(2026, 3, 1, tzinfo=UTC)
    deployed: dict[str, str] = field(default_factory=lambda: {"1": "0000"})
    records: list[PastLook] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    events: list[Announcement] = field(default_factory=list)
    went_back: str = ""
    written: int = 0

    def look(self, deploying: bool = False) -> str:
        """The next one; what it says. An event that arrives starts its deploy at once."""
        self._pass()
        moved = self.alias != self.serving
        look = Look(
            service="chat",
            model="models:/m@champion",
            wanted_version=self.alias,
            serving_version=self.serving,
            deploying=deploying,
            past=tuple(self.records if moved else self.records[-1:]),
            attempts=tuple(self.attempts) if moved else (),
            rollback=self._rollback() if moved else None,
        )
        result = judge(look, self.now)
        if is_news(result, look):
            self.records.append(
                PastLook(
                    at=self.now,
                    record=self._record(),
                    wanted_version=self.alias,
                    serving_version=self.serving,
                    reason=result.reason,
                    announcement=result.announcement,
                )
            )
        if result.announcement is not None:
            self.events.append(result.announcement)
            if self.on:
                self.deploy()
        return result.reason

    def looks(self, times: int) -> set[str]:
        """What so many looks say."""
        return {self.look() for _ in range(times)}

    def move(self, alias: str) -> str:
        """Write another version into the alias; what the next look says."""
        self.alias = alias
        return self.look()

    def deploy(self) -> None:
        """Of the version that the alias names, by an event or by hand."""
        self._pass()
        self.attempts.append(
            Attempt(
                at=self.now,
                record=self._record(),
                version=self.alias,
                outcome=self.fate,
                said_no=self.fate == "refused",
            )
        )
        if self.fate == "serving":
            self.deployed[self.alias] = self._record()
            self._serve(self.alias)

    def roll_back(self) -> None:
        """`slipway rollback`."""
        assert self.previous is not None
        self._pass()
        self._serve(self.previous)
        self.went_back = self._record()

    def asked_for(self) -> list[tuple[str, int]]:
        """Version and attempt of each event."""
        return [(event.version, event.attempt) for event in self.events]

    def _serve(self, version: str) -> None:
        if version != self.serving:
            self.previous, self.serving, self.since = self.serving, version, self.now

    def _rollback(self) -> Rollback | None:
        if self.previous is None or self.deployed[self.previous] < self.deployed[self.serving]:
            return None
        return Rollback(at=self.since, record=self.went_back, version=self.previous)

    def _record(self) -> str:
        """Ids sort by the order of writing, as those of a store do."""
        self.written += 1
        return f"{self.written:04}"

    def _pass(self) -> None:
        self.now += EVERY


LEFT = "version 2 served and was rolled back: move the alias or deploy"
CURRENT = "the alias names the version that serves"


@pytest.fixture
def world() -> World:
    """Version 1 serves."""
    return World()


@pytest.fixture
def left(world: World) -> World:
    """Version 2 was promoted, served and was left by a rollback."""
    world.move("2")
    assert world.serving == "2"
    world.roll_back()
    return world


def test_a_rollback_is_not_undone(left: World) -> None:
    assert left.looks(HOUR * 24) == {LEFT}
    assert (left.serving, left.asked_for()) == ("1", [("2", 1)])


@pytest.mark.parametrize("looked_at", [True, False])
def test_a_rollback_is_not_undone_where_the_version_was_deployed_by_hand(
    world: World, looked_at: bool
) -> None:
    world.alias = "2"
    world.deploy()
    if looked_at:
        assert world.look() == CURRENT
    world.roll_back()
    assert world.looks(HOUR) == {LEFT}
    assert not world.events


def test_a_rollback_is_not_undone_where_the_deploy_was_killed_before_its_record(world: World) -> None:
    world.move("2")
    world.attempts.clear()
    world.roll_back()
    assert world.looks(HOUR) == {LEFT}


def test_a_version_that_was_left_is_asked_for_again_once_the_alias_was_elsewhere(left: World) -> None:
    left.look()
    assert left.move("1") == CURRENT
    assert left.looks(HOUR) == {CURRENT}
    assert left.move("2") == "the alias moved"
    assert (left.serving, left.asked_for()) == ("2", [("2", 1), ("2", 2)])


def test_the_next_version_is_followed_after_a_rollback(left: World) -> None:
    left.look()
    assert left.move("3") == "the alias moved"
    assert left.look() == CURRENT
    assert left.move("2") == "the alias moved"
    assert left.serving == "2"


def test_a_deploy_by_hand_ends_what_a_rollback_began(left: World) -> None:
    left.look()
    left.deploy()
    assert left.looks(HOUR) == {CURRENT}
    left.move("3")
    assert left.serving == "3"


def test_going_forward_again_is_no_rollback(left: World) -> None:
    left.look()
    left.roll_back()
    assert (left.serving, left.look()) == ("2", CURRENT)
    left.move("1")
    assert left.serving == "1"
    left.move("2")
    assert left.serving == "2"


def test_an_alias_that_moves_after_a_rollback_is_followed_whatever_it_named_before(world: World) -> None:
    """No look after the rollback has another reason than the one before it: it is recorded for what serves."""
    world.move("2")
    world.fate = "refused"
    world.move("3")
    refused = "a deploy of version 3 was refused: move the alias or change the objectives"
    assert world.looks(HOUR) == {refused}
    world.roll_back()
    assert (world.serving, world.looks(HOUR)) == ("1", {refused})
    world.fate = "serving"
    assert world.move("2") == "the alias moved"
    assert world.serving == "2"


def test_lost_events_are_asked_for_again_until_one_arrives(world: World) -> None:
    world.on = False
    world.move("2")
    world.looks(HOUR * 48)
    assert 48 <= len(world.events) <= 60, "about hourly in the end"
    assert [attempt for _, attempt in world.asked_for()] == list(range(1, len(world.events) + 1))
    waits = [later.at - former.at for former, later in zip(world.events, world.events[1:], strict=False)]
    assert waits == sorted(waits)
    assert waits[0] == EVERY
    world.on = True
    world.looks(HOUR + 2)
    assert world.serving == "2"
    assert len({event.event_id for event in world.events}) == len(world.events)


def test_a_deploy_that_failed_ends_the_wait_for_lost_events(world: World) -> None:
    world.on = False
    world.move("2")
    world.looks(HOUR * 24)
    world.on, world.fate = True, "fault"
    world.looks(HOUR + 4)
    assert [attempt.outcome for attempt in world.attempts] == ["fault"] * MAX_FAULTS
    assert world.serving == "1"


def test_lost_events_do_not_count_as_deploys_that_failed(world: World) -> None:
    world.on = False
    world.move("2")
    world.looks(HOUR)
    world.on, world.fate = True, "fault"
    for _ in range(HOUR * 2):
        world.look()
        if len(world.attempts) == MAX_FAULTS - 1:
            world.fate = "serving"
    assert world.serving == "2"


def test_an_alias_used_as_a_switch_is_always_followed(world: World) -> None:
    for alias in "21212121":
        assert world.move(alias) == "the alias moved"
        assert world.serving == alias
        assert world.look() == CURRENT
    assert world.asked_for() == [(version, attempt) for attempt in (1, 2, 3, 4) for version in "21"]
    assert len({event.event_id for event in world.events}) == 8


def test_a_switch_is_followed_between_two_looks_too(world: World) -> None:
    """Each move is seen by one look only: nothing but the announcements tells that the alias was elsewhere."""
    for alias in "212121":
        world.move(alias)
        assert world.serving == alias


def test_faults_are_counted_anew_with_each_promotion(world: World) -> None:
    world.fate = "fault"
    world.move("2")
    capped = f"{MAX_FAULTS} deploys of version 2 failed: find out why, then deploy"
    assert world.looks(HOUR) == {"the last deploy failed", capped}
    assert world.looks(HOUR * 24) == {capped}
    assert world.asked_for() == [("2", 1), ("2", 2), ("2", 3)]
    assert world.move("1") == CURRENT
    world.fate = "serving"
    assert world.move("2") == "the alias moved"
    assert (world.serving, world.asked_for()[-1]) == ("2", ("2", 4))


def test_a_refusal_of_another_version_does_not_stick(world: World) -> None:
    world.fate = "refused"
    world.move("3")
    world.on = False
    world.move("2")
    world.attempts.append(Attempt(at=world.now, version="3", outcome="refused", said_no=True))
    world.on, world.fate = True, "serving"
    assert world.look() == "no deploy followed the last event"
    assert world.serving == "2"


def test_a_refusal_stands_until_the_alias_was_elsewhere(world: World) -> None:
    world.fate = "refused"
    world.move("2")
    refused = "a deploy of version 2 was refused: move the alias or change the objectives"
    assert world.looks(HOUR * 24) == {refused}
    world.move("1")
    assert world.move("2") == "the alias moved"
    assert world.looks(HOUR) == {refused}
    assert world.asked_for() == [("2", 1), ("2", 2)]


def test_a_service_that_stands_still_leaves_no_more_records(left: World) -> None:
    left.look()
    before = len(left.records)
    left.looks(HOUR * 24)
    assert len(left.records) == before
    left.move("1")
    left.looks(HOUR * 24)
    assert [record.reason for record in left.records[before:]] == [CURRENT]


def test_a_service_whose_events_are_lost_leaves_few_records(world: World) -> None:
    world.on = False
    world.move("2")
    world.looks(HOUR * 24)
    assert len(world.records) <= 2 * len(world.events) < 70


def test_a_service_that_serves_what_its_alias_names_leaves_none(world: World) -> None:
    world.looks(HOUR * 24)
    assert not world.records


def test_nothing_is_asked_for_while_a_deploy_runs(world: World) -> None:
    world.on = False
    world.move("2")
    assert {world.look(deploying=True) for _ in range(HOUR)} == {
        "a deploy, a rollback or a recovery of this service is running"
    }
    assert len(world.records) == 2
    world.deploy()
    assert (world.look(), len(world.events)) == (CURRENT, 1)


MONTH = timedelta(days=30)


def test_a_refusal_holds_where_the_clock_was_a_month_ahead_at_the_look_before(world: World) -> None:
    world.fate = "refused"
    world.now += MONTH
    world.move("3")
    world.now -= MONTH
    world.move("2")
    world.looks(HOUR * 24)
    assert world.asked_for() == [("3", 1), ("2", 1)]


def test_a_refusal_holds_where_the_clock_was_set_back_between_event_and_deploy(world: World) -> None:
    world.fate, world.on = "refused", False
    world.now += MONTH
    world.move("2")
    world.now -= MONTH
    world.deploy()
    assert world.looks(HOUR * 24) == {
        "a deploy of version 2 was refused: move the alias or change the objectives"
    }
    assert world.asked_for() == [("2", 1)]


def test_faults_are_counted_where_the_clock_was_set_back_between_them(world: World) -> None:
    world.fate = "fault"
    world.now += MONTH
    world.move("2")
    world.now -= MONTH
    world.looks(HOUR * 24)
    assert world.asked_for() == [("2", 1), ("2", 2), ("2", 3)]


def test_a_lost_event_is_asked_for_again_where_the_clock_was_set_back(world: World) -> None:
    world.on = False
    world.now += MONTH
    world.move("2")
    world.now -= MONTH
    assert "no deploy followed the last event" in world.looks(2)
    world.looks(HOUR * 48)
    assert 48 <= len(world.events) <= 60, "about hourly in the end, as ever"
    world.on = True
    world.looks(HOUR + 2)
    assert world.serving == "2"


@pytest.mark.parametrize("step", [MONTH, -MONTH])
def test_an_alias_is_followed_whatever_the_clock_does(world: World, step: timedelta) -> None:
    for alias in "2321":
        world.move(alias)
        assert world.serving == alias
        world.now += step


@pytest.mark.parametrize("step", [MONTH, -MONTH])
def test_a_rollback_is_not_undone_whatever_the_clock_does(world: World, step: timedelta) -> None:
    world.move("3")
    world.move("2")
    world.now += step
    world.roll_back()
    assert (world.serving, world.looks(HOUR)) == ("3", {LEFT})
    world.now -= step
    assert world.looks(HOUR) == {LEFT}
    world.move("1")
    world.move("2")
    assert world.serving == "2"
