"""The result of one look at a model registry for one service."""

from __future__ import annotations

from datetime import datetime

from tasks.core.frozen import Frozen
from tasks.core.result import StageResult
from tasks.core.verdicts import RegistryVerdict

EVENT = "model-registry.version.promoted"
"""Name of the event that requests a redeploy."""


class Announcement(Frozen):
    """An event that was emitted for a version: the `attempt`-th for it."""

    event_id: str
    service: str
    model: str
    version: str
    attempt: int
    at: datetime


class Attempt(Frozen):
    """A deploy of a version that ended: it served, or its verdict said no, or it failed.

    `record` is the id of its record: ids of one store sort by the order of writing, whatever the clocks say.
    """

    at: datetime
    record: str = ""
    version: str
    outcome: str
    said_no: bool


class Rollback(Frozen):
    """Since when an older release of a service serves again, and the version of the newer one that was left.

    `record` is the id of its record; empty if it was killed before it could write one.
    """

    at: datetime
    record: str = ""
    version: str


class PastLook(Frozen):
    """What an earlier look recorded. `record` is the id of its record."""

    at: datetime
    record: str = ""
    wanted_version: str
    serving_version: str | None
    reason: str
    announcement: Announcement | None = None


class Look(Frozen):
    """The registry's alias against the serving release, and what was seen and tried before.

    `past` are recorded looks of this service at this alias; `attempts` are deploys of the spec that a redeploy would
    use, because a trial of another spec says nothing about it. Both are in the order of writing, oldest first.
    """

    service: str
    model: str
    wanted_version: str
    serving_version: str | None
    deploying: bool = False
    past: tuple[PastLook, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    rollback: Rollback | None = None


class RegistryResult(StageResult):
    """The result of checking one service. `announcement` is the event emitted by this look, if any."""

    verdict: RegistryVerdict
    service: str
    model: str
    wanted_version: str
    serving_version: str | None
    reason: str
    announcement: Announcement | None = None
