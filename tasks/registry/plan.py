"""Whether a look at the registry should request a redeploy. Pure.

Reconcile, do not only react: every look asks the question again, so a lost event is made good by the next look and a
doubled one does no harm. Requests and attempts count from the moment when the alias was first seen to name the
version: each promotion starts afresh. The order of records says what came first, not their times (ADR 86): clocks are
set back, and differ between hosts.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta

from tasks.core.verdicts import FAULT, LifecycleVerdict, RegistryVerdict
from tasks.registry.models import Announcement, Attempt, Look, PastLook, RegistryResult, Rollback

GRACE = timedelta(minutes=2)
"""Default time for an announced redeploy to start before its event counts as lost."""

MAX_DOUBLINGS = 5
"""The grace doubles with each lost event, at most this many times: few events pile up overnight, and once
events arrive again, the wait is about an hour at most."""

MAX_FAULTS = 3
"""Redeploys of one version that may end in a fault before somebody has to look into it."""


def judge(look: Look, now: datetime, grace: timedelta = GRACE) -> RegistryResult:
    """Announce a redeploy, or say why not."""
    announcement, reason = _decide(look, now, grace)
    current = look.wanted_version == look.serving_version
    return RegistryResult(
        verdict=RegistryVerdict.CURRENT if current else RegistryVerdict.MOVED,
        service=look.service,
        model=look.model,
        wanted_version=look.wanted_version,
        serving_version=look.serving_version,
        reason=reason,
        announcement=announcement,
    )


def is_news(result: RegistryResult, look: Look) -> bool:
    """Whether this answer says something that the last record does not.

    `current` is news only after a record of something else: it tells later looks that the alias came back. A change
    of the version that serves is news too: later looks then know that the alias was seen after the rollback or
    deploy.
    """
    if result.announcement is not None:
        return True
    if not look.past:
        return result.verdict != RegistryVerdict.CURRENT
    last = look.past[-1]
    before = (last.wanted_version, last.serving_version, last.reason)
    return before != (result.wanted_version, result.serving_version, result.reason)


def _decide(look: Look, now: datetime, grace: timedelta) -> tuple[Announcement | None, str]:
    version = look.wanted_version
    if version == look.serving_version:
        return None, "the alias names the version that serves"
    if look.deploying:
        return None, "a deploy, a rollback or a recovery of this service is running"
    elsewhere, since = _last_move(look)
    announced = [past for past in since if past.announcement is not None]
    tried = _tried(look, announced)
    if _was_left(look, elsewhere) or any(one.outcome == LifecycleVerdict.SERVING for one in tried):
        return None, f"version {version} served and was rolled back: move the alias or deploy"
    if not announced:
        return announce(look, _next_attempt(look), now), "the alias moved"
    if any(attempt.said_no for attempt in tried):
        return None, f"a deploy of version {version} was refused: move the alias or change the objectives"
    failed = [attempt for attempt in tried if attempt.outcome == FAULT]
    if len(failed) >= MAX_FAULTS:
        return None, f"{len(failed)} deploys of version {version} failed: find out why, then deploy"
    unanswered = [made for made in announced if not failed or not _follows(failed[-1], made)]
    if not unanswered:
        return announce(look, _next_attempt(look), now), "the last deploy failed"
    if _is_over(unanswered[-1].at, now, grace * 2 ** min(len(unanswered) - 1, MAX_DOUBLINGS)):
        return announce(look, _next_attempt(look), now), "no deploy followed the last event"
    return None, "a redeploy was requested"


def _last_move(look: Look) -> tuple[PastLook | None, tuple[PastLook, ...]]:
    """The looks from the last one on at which the alias named another version."""
    for count, past in enumerate(reversed(look.past)):
        if past.wanted_version != look.wanted_version:
            return past, look.past[len(look.past) - count :]
    return None, look.past


def _tried(look: Look, announced: Sequence[PastLook]) -> list[Attempt]:
    """Deploys of the version since it was first requested: earlier ones do not count."""
    if not announced:
        return []
    return [
        one for one in look.attempts if one.version == look.wanted_version and _follows(one, announced[0])
    ]


def _follows(later: Attempt | Rollback, past: PastLook) -> bool:
    """Whether it was written after that check, judged by the order of the records, or else by the clock."""
    if later.record and past.record:
        return later.record > past.record
    return later.at >= past.at


def _is_over(since: datetime, now: datetime, wait: timedelta) -> bool:
    """Whether a wait that began then has ended.

    If it began in the future, the clock was set back, and how long ago it began is unknown: one more request
    does less harm than waiting until that time.
    """
    return abs(now - since) >= wait


def _was_left(look: Look, elsewhere: PastLook | None) -> bool:
    """Whether the version was rolled back: requesting it would undo that."""
    left = look.rollback
    if left is None or left.version != look.wanted_version:
        return False
    return elsewhere is None or _follows(left, elsewhere)


def _next_attempt(look: Look) -> int:
    """The number of the next attempt, over all promotions of the version, so that each event has its own id."""
    made = (past.announcement for past in look.past if past.wanted_version == look.wanted_version)
    return 1 + max((announcement.attempt for announcement in made if announcement), default=0)


def announce(look: Look, attempt: int, now: datetime) -> Announcement:
    """The event for this version and attempt; its id is always the same."""
    name = f"slipway:{look.service}:{look.model}:{look.wanted_version}:{attempt}"
    return Announcement(
        event_id=str(uuid.uuid5(uuid.NAMESPACE_URL, name)),
        service=look.service,
        model=look.model,
        version=look.wanted_version,
        attempt=attempt,
        at=now,
    )
