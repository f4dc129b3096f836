"""What a look at a service that should run sees, and what the looks before it left."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from tasks.core.frozen import Frozen


class Condition(StrEnum):
    """`down`: nothing takes the traffic. `lame`: something does, and its engine does not run."""

    UP = "up"
    LAME = "lame"
    DOWN = "down"


class Progress(Frozen):
    """The progress of an engine that no supervisor watches.

    It contains the requests that the engine works on, the bytes of answers that it has sent and the CPU time that it
    has used so far, and whether `/health` did not answer at all.
    """

    requests: int = Field(ge=0)
    sent_bytes: int = Field(ge=0)
    silent: bool
    cpu_s: float = Field(0.0, ge=0)


class Sight(Frozen):
    """The result of one check. `progress` is None if a supervisor watches the engine, or nothing runs."""

    condition: Condition
    progress: Progress | None = None


class Past(Frozen):
    """What is kept from look to look, as `recovery.json` in the service's folder; only while something is wrong.

    `failures` are attempts in a row that did not bring the service back, the last one for `reason`; `wait_looks` are
    the looks until the next attempt, `silent_looks` those in a row whose supervisor did not answer. Looks are
    counted, not seconds: a clock can be set.
    """

    failures: int = Field(0, ge=0)
    wait_looks: int = Field(0, ge=0)
    reason: str | None = None
    lame_looks: int = Field(0, ge=0)
    silent_looks: int = Field(0, ge=0)
    progress: Progress | None = None


class Step(StrEnum):
    """What a look asks for."""

    NOTHING = "nothing"
    WAIT = "wait"
    START = "start"
    RESTART_ENGINE = "restart the engine"
