"""What to do about a service that should run. Pure: no clock, network or environment."""

from __future__ import annotations

from tasks.rollout.recovery.models import Condition, Past, Progress, Sight, Step

LONGEST_WAIT_LOOKS = 60
"""An hour, where a look is taken each minute."""

BUSY_S = 3.0
"""Processor time that an engine at work uses at the least between two looks; one that only waits does not."""


def next_step(past: Past, sight: Sight) -> tuple[Step, Past]:
    """What to do now, and what to keep for the next look.

    A service that is down is started at once. One whose engine does not run gets a look's time: Docker starts it
    again. An engine is hung if requests wait, and between two looks it sent no byte, answered no `/health` and used
    no CPU time.
    """
    if sight.condition is Condition.UP:
        if _is_hung(past.progress, sight.progress):
            return Step.RESTART_ENGINE, Past()
        return Step.NOTHING, Past(progress=sight.progress if _is_suspect(sight.progress) else None)
    lame_looks = past.lame_looks + 1 if sight.condition is Condition.LAME else 0
    past = past.model_copy(update={"lame_looks": lame_looks, "progress": None})
    if lame_looks == 1:
        return Step.WAIT, past
    if past.wait_looks:
        return Step.WAIT, past.model_copy(update={"wait_looks": past.wait_looks - 1})
    return Step.START, past


def after_failure(past: Past, reason: str) -> Past:
    """The wait doubles with each attempt that fails: 1, 3, 7 … looks, at most `LONGEST_WAIT_LOOKS`."""
    failures = past.failures + 1
    wait_looks = min(2 ** min(failures, 10) - 1, LONGEST_WAIT_LOOKS)
    return past.model_copy(update={"failures": failures, "wait_looks": wait_looks, "reason": reason})


def after_blind_look(past: Past, reason: str) -> Past:
    """What to remember of a service that could not be checked: the next check tries again."""
    return past.model_copy(update={"failures": max(1, past.failures), "reason": reason})


def is_news(past: Past, reason: str | None) -> bool:
    """Whether an attempt's end is worth a record: a service that came back, or that fails for another reason."""
    return reason is None or past.failures == 0 or reason != past.reason


def _is_suspect(progress: Progress | None) -> bool:
    return progress is not None and progress.requests > 0 and progress.silent


def _is_hung(before: Progress | None, now: Progress | None) -> bool:
    if before is None or now is None or not (_is_suspect(before) and _is_suspect(now)):
        return False
    return before.sent_bytes == now.sent_bytes and now.cpu_s - before.cpu_s < BUSY_S
