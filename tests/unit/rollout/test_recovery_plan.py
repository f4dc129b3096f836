"""What the looks at a service come to, one after the other."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tasks.rollout.recovery.models import Condition, Past, Progress, Sight, Step
from tasks.rollout.recovery.plan import (
    LONGEST_WAIT_LOOKS,
    after_blind_look,
    after_failure,
    is_news,
    next_step,
)

UP, LAME, DOWN = (Sight(condition=condition) for condition in Condition)


def waits(requests: int = 1, sent: int = 7, *, silent: bool = True, cpu_s: float = 100) -> Sight:
    progress = Progress(requests=requests, sent_bytes=sent, silent=silent, cpu_s=cpu_s)
    return Sight(condition=Condition.UP, progress=progress)


def steps(*sights: Sight) -> list[Step]:
    past, found = Past(), []
    for sight in sights:
        step, past = next_step(past, sight)
        found.append(step)
    return found


@pytest.mark.parametrize(
    ("sights", "last"),
    [
        ([UP], Step.NOTHING),
        ([DOWN], Step.START),
        ([LAME], Step.WAIT),
        ([LAME, LAME], Step.START),
        ([LAME, UP, LAME], Step.WAIT),
        ([LAME, DOWN], Step.START),
        ([waits()], Step.NOTHING),
        ([waits(), waits()], Step.RESTART_ENGINE),
        ([waits(), waits(sent=8)], Step.NOTHING),
        ([waits(), waits(silent=False)], Step.NOTHING),
        ([waits(), waits(cpu_s=101)], Step.RESTART_ENGINE),
        ([waits(), waits(cpu_s=130)], Step.NOTHING),
        ([waits(silent=False), waits()], Step.NOTHING),
        ([waits(), waits(requests=0)], Step.NOTHING),
        ([waits(), LAME, waits()], Step.NOTHING),
        ([waits(), UP, waits()], Step.NOTHING),
    ],
)
def test_what_a_look_asks_for(sights: list[Sight], last: Step) -> None:
    assert steps(*sights)[-1] is last


def test_a_service_that_fails_is_tried_less_and_less() -> None:
    past, attempts = Past(), []
    for look in range(400):
        step, past = next_step(past, DOWN)
        if step is Step.START:
            attempts.append(look)
            past = after_failure(past, "no room")
    gaps = [later - earlier for earlier, later in pairwise(attempts)]
    assert gaps[:5] == [2, 4, 8, 16, 32]
    assert set(gaps[5:]) == {LONGEST_WAIT_LOOKS + 1}


def test_one_that_came_back_begins_anew() -> None:
    past = after_failure(after_failure(Past(), "no room"), "no room")
    assert next_step(past, UP) == (Step.NOTHING, Past())


def test_the_same_failure_is_news_once() -> None:
    past = Past()
    assert is_news(past, "no room")
    past = after_failure(past, "no room")
    assert not is_news(past, "no room")
    assert is_news(past, "the port is taken")
    assert is_news(past, None)


def test_a_look_that_fails_is_news_once_and_puts_off_no_attempt() -> None:
    past = after_blind_look(Past(), "no Docker")
    assert not is_news(past, "no Docker")
    assert is_news(past, "denied")
    assert next_step(past, DOWN)[0] is Step.START
    assert next_step(past, UP) == (Step.NOTHING, Past())
