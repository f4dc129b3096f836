"""One release on its way into service, at an address that is claimed: start, gate, switch, settle, or undo."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from tasks.core.addresses import base_url
from tasks.core.asking import ask
from tasks.core.cancellation import current
from tasks.core.digests import short
from tasks.core.errors import EngineError, RolloutError, SlipwayError
from tasks.core.prefetch import Prefetched
from tasks.core.progress import say
from tasks.core.release import Release, ServiceFolder
from tasks.core.verdicts import RolloutVerdict, StageName
from tasks.rollout.documents import write_document, write_state
from tasks.rollout.door import Door, ReadKeys, digests_of, door_of, keep_door, no_secrets
from tasks.rollout.gate import Answer, check_answers
from tasks.rollout.models import RolloutPlan, RolloutResult
from tasks.rollout.target import NewRelease, OpenApi, Target

_POLL_S = 0.02
_LOG_LINES = 12
_DEATH_NOTICE_S = 2.0


@dataclass(frozen=True)
class Rollout:
    """A release that is to serve, and what it takes to bring it into service.

    `read_keys` reads the secret that the release names; with `reopen` one that names none opens a locked door.
    """

    release: Release
    folder: ServiceFolder
    target: Target
    open_api: OpenApi
    read_keys: ReadKeys = field(default=no_secrets, kw_only=True)
    reopen: bool = field(default=True, kw_only=True)

    def door(self) -> Door | None:
        """Who may use the service once this release serves. Raises `SlipwayError` if that cannot be read."""
        return door_of(self.release, self.folder, self.read_keys, reopen=self.reopen)

    def lock(self, door: Door | None) -> None:
        """Have the door of the release that serves now. Raises `RolloutError` if the target cannot."""
        running = self.target.running()
        if door is not None or (running is not None and running.locked):
            self.target.lock(digests_of(door))
        keep_door(door, self.folder)

    def result(self, plan: RolloutPlan, verdict: RolloutVerdict, **found: Any) -> RolloutResult:
        """How it ended: `found` are the further fields of the result."""
        return RolloutResult(
            verdict=verdict,
            name=self.release.name,
            target=self.release.target,
            action=plan.action,
            release=self.release.id,
            **found,
        )


@dataclass(frozen=True)
class Attempt(Rollout):
    """One release on its way into service, at a claimed address."""

    plan: RolloutPlan
    port: int
    prefetched: Prefetched
    opens_to: Door | None = field(default=None, kw_only=True)

    def run(self) -> RolloutResult:
        new: NewRelease | None = None
        failure: EngineError | RolloutError | None = None
        log, settled = "", False
        try:
            say(StageName.ROLLOUT, f"starting {short(self.release.id)}")
            start = time.monotonic()
            new = self.target.start(self.release)
            completion = self._pass_gate(new)
            first_completion_s = time.monotonic() - start
            write_document(self.release, self.folder)
            self._bring_into_service(new)
            settled = True
        except (EngineError, RolloutError) as error:
            failure, log = error, self._log_of(new) or error.detail or ""
        finally:
            if not settled:
                self._undo(new)
        if failure is not None:
            return self._rolled_back(failure, log)
        # Before the drain: that takes long, and a command that is ended in it leaves the new release serving.
        write_state(self.release, self.folder, self.plan.host, self.port, self.plan.previous)
        # Only now: until then, the previous release may have to serve on, for those whom it served.
        self.lock(self._door_now())
        say(StageName.ROLLOUT, f"{short(self.release.id)} serves at {self._endpoint}")
        self._end_previous()
        read = self.prefetched.read_bytes or None
        return self.result(
            self.plan,
            RolloutVerdict.SERVING,
            endpoint=self._endpoint,
            serving=self.release.id,
            previous=self.plan.previous,
            completion=completion.text,
            first_completion_s=first_completion_s,
            prefetched_bytes=read,
            prefetch_s=self.prefetched.seconds if read else None,
        )

    @property
    def _endpoint(self) -> str:
        return base_url(self.plan.host, self.port)

    def _door_now(self) -> Door | None:
        """The keys may have been replaced while the engine started."""
        try:
            return self.door()
        except SlipwayError:
            return self.opens_to

    def _pass_gate(self, new: NewRelease) -> Answer:
        gate = self.release.spec.rollout.gate
        with self.open_api(new.base_url) as api:
            deadline = time.monotonic() + gate.start_timeout_s
            while not api.ready():
                current().check()
                if fault := self.target.fault(new):
                    raise EngineError(f"the engine died while starting: {fault}")
                if time.monotonic() > deadline:
                    raise EngineError(
                        f"the engine was not ready within {gate.start_timeout_s:g} s",
                        fix="raise rollout.gate.start_timeout_s",
                    )
                time.sleep(_POLL_S)
            try:
                completion = check_answers(api, self.release)
            except EngineError as error:
                if fault := self._fault_soon(new):
                    raise EngineError(f"the engine died at its first completion: {fault}") from error
                raise
        say(StageName.ROLLOUT, f"gate passed: {gate.prompt!r} -> {completion.text!r}")
        return completion

    def _fault_soon(self, new: NewRelease) -> str | None:
        """How the new release died: a connection breaks a moment before the death is known."""
        deadline = time.monotonic() + _DEATH_NOTICE_S
        while not (fault := self.target.fault(new)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return fault

    def _bring_into_service(self, new: NewRelease) -> None:
        self.target.switch(new)
        with self.open_api(self._endpoint) as api:
            ask(api, self.release.config, self.release.spec.rollout.gate.prompt, 1)
        self.target.settle(new, drain_s=self.release.spec.rollout.drain_s)

    def _end_previous(self) -> None:
        """What is left of the previous release does not fail a rollout that serves: the next claim ends it."""
        try:
            self.target.end_previous(drain_s=self.release.spec.rollout.drain_s)
        except RolloutError as error:
            say(StageName.ROLLOUT, f"could not end the previous release, the next rollout will: {error}")

    def _log_of(self, new: NewRelease | None) -> str:
        if new is None:
            return ""
        try:
            return self.target.new_release_log(new, _LOG_LINES)
        except RolloutError:
            return ""  # the target itself is what failed

    def _rolled_back(self, error: EngineError | RolloutError, log: str) -> RolloutResult:
        """What takes the traffic now is measured by the caller."""
        state = self.folder.state()
        return self.result(
            self.plan,
            RolloutVerdict.ROLLED_BACK,
            endpoint=None,
            serving=None,
            previous=state.previous if state else None,
            reason=str(error),
            log_tail=log or None,
        )

    def _undo(self, new: NewRelease | None) -> None:
        drain_s = self.release.spec.rollout.drain_s
        if new is not None:
            self.target.revert(new, drain_s=drain_s)
        if self.plan.serving is None:
            self.target.stop(drain_s=drain_s)
