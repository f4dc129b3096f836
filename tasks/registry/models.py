"""What one look at a model registry found for one service."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from tasks.core.result import StageResult
from tasks.core.verdicts import RegistryVerdict

EVENT = "model-registry.version.promoted"
"""Name of the event that asks for a redeploy."""


class Announcement(BaseModel):
    """An event that was emitted for a version: the `attempt`-th for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    event_id: str
    service: str
    model: str
    version: str
    attempt: int
    at: datetime


class Attempt(BaseModel):
    """A deploy of a version that ended: it served, or its verdict said no, or it failed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: datetime
    outcome: str
    said_no: bool


class Look(BaseModel):
    """The registry's alias against the serving release, and what was tried since the alias moved."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    service: str
    model: str
    wanted_version: str
    serving_version: str | None
    deploying: bool
    announced: tuple[Announcement, ...] = ()
    attempts: tuple[Attempt, ...] = ()


class RegistryResult(StageResult):
    """Of one service. `announcement` is the event emitted by this look, if any."""

    verdict: RegistryVerdict
    service: str
    model: str
    wanted_version: str
    serving_version: str | None
    reason: str
    announcement: Announcement | None = None
