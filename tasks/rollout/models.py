"""What a rollout finds, plans and answers."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from tasks.core.addresses import base_url
from tasks.core.frozen import Frozen
from tasks.core.release import Release
from tasks.core.result import StageResult
from tasks.core.spec_kinds import Target
from tasks.core.verdicts import RolloutVerdict


class Running(Frozen):
    """What takes a service's traffic now, as the target itself sees it.

    `up` is whether its engine runs, `pid` the root of its process tree if there is one on this host,
    `restarts` how often it was started again after it died, `open_requests` what it works on now. The
    proxy's `/metrics` is at `metrics_port` of the loopback. `locked` is whether requests need a key.
    """

    release: str
    host: str
    port: int
    up: bool
    restarts: int = Field(0, ge=0)
    open_requests: int | None = Field(None, ge=0)
    pid: int | None = None
    metrics_port: int | None = None
    locked: bool = False

    @property
    def endpoint(self) -> str:
        """Base URL, without `/v1`."""
        return base_url(self.host, self.port)

    @property
    def metrics(self) -> str | None:
        """Where the proxy says how many requests it passed, how long they took and how they ended."""
        return f"{base_url('127.0.0.1', self.metrics_port)}/metrics" if self.metrics_port else None


class RolloutAction(StrEnum):
    """What there is to do."""

    NOTHING = "nothing"
    ADOPT = "adopt"
    START = "start"
    REPLACE = "replace"


class RolloutPlan(Frozen):
    """The way from what runs to what is wanted.

    `port` is None if any free one will do. `serving` is the release that serves until the switch, and again
    if anything fails; `previous` the one that `rollback` will go to once this one serves.
    """

    action: RolloutAction
    host: str
    port: int | None
    serving: str | None
    previous: str | None
    steps: tuple[str, ...]


class RolloutResult(StageResult):
    """What serves now and, if the verdict is `rolled_back`, why the wanted release does not.

    `release` is the wanted one, `serving` the one that takes traffic (None: nothing serves). `completion` is
    the gate's answer and `first_completion_s` the time from engine start to it. `prefetched_bytes` of the model
    were read into the page cache during the start, in `prefetch_s`; None if there was nothing to bring. `answers` is
    measured after a rollback: whether what should serve completed a prompt; None if nothing served before.
    """

    verdict: RolloutVerdict
    name: str
    target: Target
    action: RolloutAction
    release: str
    serving: str | None
    previous: str | None
    endpoint: str | None
    completion: str | None = None
    first_completion_s: float | None = Field(None, ge=0)
    prefetched_bytes: int | None = Field(None, ge=0)
    prefetch_s: float | None = Field(None, ge=0)
    reason: str | None = None
    answers: bool | None = None

    @property
    def reasons(self) -> tuple[str, ...]:
        """See `StageResult`."""
        return (self.reason,) if self.reason else ()


ROLLBACK = "rollback"
START = "start"
KEEP_RUNNING = "keep-running"
"""What the evidence of a rollout's record says it was done by (`by`); a deploy's says nothing."""


def rollout_inputs(release: Release) -> dict[str, str]:
    """What decides a rollout, for its record."""
    return {"service": release.name, "release": release.id}
