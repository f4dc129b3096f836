"""Whether a look at the registry should ask for a redeploy. Pure.

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
"""How long an announced redeploy may by default take to start before its event counts as lost."""

MAX_DOUBLINGS = 5
"""The grace doubles with each lost event, this often: whoever is away for a night finds few events, and waits for
about an hour at most once events arrive again."""

MAX_FAULTS = 3
"""Redeploys of one version that ended in a fault before a human has to look."""


def judge(look: Look, now: datetime, grace: timedelta = GRACE) -> RegistryResult:
    """Announce, or say why not."""
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
    """Whether a record of this answer says what the last one does not.

    That what serves is what the alias names is news only after a record of something else: then it tells later
    looks that the alias came back. Another version that serves is news for them, too: what the alias named then, it
    named after the rollback or deploy.
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
        return None, "the alias names what serves"
    if look.deploying:
        return None, "a deploy of this service is running"
    elsewhere, since = _last_move(look)
    announced = [past for past in since if past.announcement is not None]
    tried = _tried(look, announced)
    if _was_left(look, elsewhere) or any(one.outcome == LifecycleVerdict.SERVING for one in tried):
        return None, f"version {version} served and was rolled back: move the alias or deploy"
    if not announced:
        return announce(look, _next_attempt(look), now), "the alias moved"
    if any(attempt.said_no for attempt in tried):
        return None, f"a deploy of version {version} was refused: move the alias or the objectives"
    failed = [attempt for attempt in tried if attempt.outcome == FAULT]
    if len(failed) >= MAX_FAULTS:
        return None, f"{len(failed)} deploys of version {version} failed: look at why, then deploy"
    unanswered = [made for made in announced if not failed or not _follows(failed[-1], made)]
    if not unanswered:
        return announce(look, _next_attempt(look), now), "the last deploy failed"
    if _is_over(unanswered[-1].at, now, grace * 2 ** min(len(unanswered) - 1, MAX_DOUBLINGS)):
        return announce(look, _next_attempt(look), now), "no deploy followed the last event"
    return None, "a redeploy was asked for"


def _last_move(look: Look) -> tuple[PastLook | None, tuple[PastLook, ...]]:
    """The last look at which the alias named another version, and those after it."""
    for count, past in enumerate(reversed(look.past)):
        if past.wanted_version != look.wanted_version:
            return past, look.past[len(look.past) - count :]
    return None, look.past


def _tried(look: Look, announced: Sequence[PastLook]) -> list[Attempt]:
    """Deploys of the version since it was first asked for: an earlier one does not count as tried for it."""
    if not announced:
        return []
    return [
        one for one in look.attempts if one.version == look.wanted_version and _follows(one, announced[0])
    ]


def _follows(later: Attempt | Rollback, past: PastLook) -> bool:
    """Whether it was written after that look: by their records, else by the clock."""
    if later.record and past.record:
        return later.record > past.record
    return later.at >= past.at


def _is_over(since: datetime, now: datetime, wait: timedelta) -> bool:
    """Whether a wait that began then has ended.

    One that began in the future tells of a clock that was set back: how long ago it was is not known, and to ask once
    more does less harm than to wait until that time comes.
    """
    return abs(now - since) >= wait


def _was_left(look: Look, elsewhere: PastLook | None) -> bool:
    """Whether somebody went back from the version: to ask for it would undo that."""
    left = look.rollback
    if left is None or left.version != look.wanted_version:
        return False
    return elsewhere is None or _follows(left, elsewhere)


def _next_attempt(look: Look) -> int:
    """Counts on over all promotions of the version, so that each event has its own id."""
    made = (past.announcement for past in look.past if past.wanted_version == look.wanted_version)
    return 1 + max((announcement.attempt for announcement in made if announcement), default=0)


def announce(look: Look, attempt: int, now: datetime) -> Announcement:
    """The event for this version and attempt; its id is the same however often it is made."""
    name = f"slipway:{look.service}:{look.model}:{look.wanted_version}:{attempt}"
    return Announcement(
        event_id=str(uuid.uuid5(uuid.NAMESPACE_URL, name)),
        service=look.service,
        model=look.model,
        version=look.wanted_version,
        attempt=attempt,
        at=now,
    )
