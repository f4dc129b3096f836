"""The leak check's request and answer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.core.frozen import Frozen
from tasks.core.result import StageResult
from tasks.core.verdicts import LeakVerdict

Structure = Literal["straight", "saturating", "steps", "onset"]
"""What explains the floor apart from trend and load: nothing, a cache that fills, changes of configuration, or a
trend that starts late."""


class Series(Frozen):
    """Memory of one process, or of one container, since its start.

    `t_s` are seconds on any clock, `bytes_` memory that cannot be reclaimed (anonymous, resident and swapped);
    `requests`, if counted, is the work done since the start: its rate is the load.
    """

    t_s: tuple[float, ...]
    bytes_: tuple[float, ...]
    requests: tuple[float, ...] | None = None


class LeakRequest(Frozen):
    """What a leak is compared with. `limit_bytes` is where the kernel would kill the process."""

    limit_bytes: int | None = Field(None, gt=0, description="Memory limit, for the forecast.")
    confirm_after_s: float = Field(86_400, gt=0, description="Data needed to confirm a leak, s.")


class Look(Frozen):
    """One look at a prefix of the series.

    `slope_bytes_per_s` is the trend that remains after load and structure are explained, `slope_error` its
    standard error (HAC), `onset` the share of the window after which it begins, `growth` what it adds relative to
    the level, `level_bytes` the median of the floor.
    """

    until_s: float
    hit: bool
    why: str
    structure: Structure | None = None
    slope_bytes_per_s: float = 0.0
    slope_error: float = Field(0.0, ge=0)
    onset: float = Field(0.0, ge=0, le=1)
    growth: float = 0.0
    level_bytes: float = Field(0.0, ge=0)


class LeakResult(StageResult):
    """The verdict on one series. `oom_at_s` is on the series' own clock; `looks` are the latest ones, back to the
    last miss; `floor` is that of the last look, (seconds, bytes)."""

    verdict: LeakVerdict
    slope_bytes_per_s: float
    oom_at_s: float | None
    reason: str
    span_s: float = Field(0.0, ge=0)
    samples: int = Field(0, ge=0)
    looks: tuple[Look, ...] = ()
    floor: tuple[tuple[float, float], ...] = ()
