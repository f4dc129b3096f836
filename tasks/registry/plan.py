"""Whether a look at the registry should ask for a redeploy. Pure.

Reconcile, do not only react (DESIGN 8): the question is asked at every look, so a lost event is made good by
the next one, and a doubled event does no harm.
"""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta

from tasks.core.verdicts import RegistryVerdict
from tasks.registry.models import Announcement, Look, RegistryResult

GRACE = timedelta(minutes=2)
"""How long an announced redeploy may by default take to start before its event counts as lost."""

MAX_ATTEMPTS = 3
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


def _decide(look: Look, now: datetime, grace: timedelta) -> tuple[Announcement | None, str]:
    if look.wanted_version == look.serving_version:
        return None, "the alias names what serves"
    if look.deploying:
        return None, "a deploy of this service is running"
    announced = [made for made in look.announced if made.version == look.wanted_version]
    if not announced:
        return announce(look, 1, now), "the alias moved"
    last = max(announced, key=lambda made: made.attempt)
    ended = [attempt for attempt in look.attempts if attempt.at >= last.at]
    if any(attempt.said_no for attempt in ended):
        return (
            None,
            f"a deploy of version {look.wanted_version} was refused: move the alias or the objectives",
        )
    if last.attempt >= MAX_ATTEMPTS:
        return (
            None,
            f"{MAX_ATTEMPTS} deploys of version {look.wanted_version} were asked for: look at why they fail",
        )
    if ended:
        return announce(look, last.attempt + 1, now), "the last deploy failed"
    if now - last.at >= grace:
        return announce(look, last.attempt + 1, now), "no deploy followed the last event"
    return None, "a redeploy was asked for"


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
