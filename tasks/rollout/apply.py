"""The sequence of every rollout on any target: gate first, then traffic, and the former one ends last.

Order: claim the address, start the newcomer beside the former release, `/health`, one real completion
straight to the newcomer, write the release's document, switch, one completion at the public address,
settle, write `current.json`, end the former one. Whatever fails until it is settled, the former release takes
the traffic; a kill at any moment leaves either the old or the new one serving.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from tasks.core.addresses import base_url
from tasks.core.cancellation import current
from tasks.core.digests import is_digest_of_model, short
from tasks.core.errors import (
    EngineError,
    ModelError,
    RecordError,
    RolloutError,
    SlipwayError,
    StageCancelledError,
)
from tasks.core.files import PART, fsync_folder, write_atomically
from tasks.core.prefetch import Prefetch, Prefetched, no_prefetch
from tasks.core.progress import say
from tasks.core.release import Release, ServiceFolder, ServiceState
from tasks.core.verdicts import RolloutVerdict, StageName
from tasks.engines.catalogue import get_engine
from tasks.rollout.damage import set_damage_aside
from tasks.rollout.models import RolloutAction, RolloutPlan, RolloutResult, Running
from tasks.rollout.plan import plan_rollout
from tasks.rollout.report import what_serves

_POLL_S = 0.02
_LOG_LINES = 12
_DEATH_NOTICE_S = 2.0
_BUSY_S = 60.0
"""How long a previous release that runs may be busy after a rollback, until it counts as not answering."""

_SERVES_ALREADY = (RolloutAction.NOTHING, RolloutAction.ADOPT)


class Completion(Protocol):
    """What `blocks.engine_api.Completion` is to a rollout."""

    @property
    def text(self) -> str: ...


class Api(Protocol):
    """An engine's HTTP interface, as `blocks.engine_api.EngineApi` gives it."""

    def ready(self) -> bool: ...

    def complete(self, model: str, prompt: str, max_tokens: int, /) -> Completion: ...


OpenApi = Callable[[str], AbstractContextManager[Api]]
"""Opens a client for a base URL."""


@dataclass(frozen=True)
class Newcomer:
    """A started engine that gets no traffic yet. `base_url` is its private address, without `/v1`."""

    release: str
    base_url: str


class Target(Protocol):
    """Where a service runs. One object serves one service, in one command.

    A newcomer that was neither settled nor reverted when the object is closed, or when this process is
    killed, must end: at once, or at the latest by the next `claim`.
    """

    def running(self) -> Running | None:
        """What takes traffic now; None if nothing does. Changes nothing, and starts nothing."""

    def written(self) -> Running | None:
        """What the target itself wrote down to serve, not `up`, whether or not it runs; None if nothing readable."""

    def claim(self, host: str, port: int | None) -> int:
        """Make the public address this service's own, and sweep what a killed rollout left; the port.

        Does nothing where the address is held already. A service that serves elsewhere does so until
        `settle`. Raises `PortTakenError` that names the port and who holds it, with nothing started.
        """

    def start(self, release: Release) -> Newcomer:
        """Start `release` on a private address. Raises `RolloutError` with nothing left behind."""

    def fault(self, newcomer: Newcomer) -> str | None:
        """How the newcomer died; None while it lives."""

    def newcomer_log(self, newcomer: Newcomer, lines: int) -> str:
        """The end of the newcomer's log."""

    def switch(self, newcomer: Newcomer) -> None:
        """Send new requests to the newcomer. The former one keeps those it has, and stays up."""

    def settle(self, newcomer: Newcomer, *, drain_s: float) -> None:
        """Make the switch durable, at once: from here on the newcomer is what serves.

        Something that outlives this command may end the former one from now on, as `end_former` does.
        """

    def end_former(self, *, drain_s: float) -> None:
        """End what served before, once it has no request left or after `drain_s`, unless `settle` sees to it."""

    def revert(self, newcomer: Newcomer, *, drain_s: float) -> None:
        """Undo: the former one gets the traffic if it does not have it, and the newcomer ends."""

    def stop(self, *, drain_s: float) -> None:
        """End the service and everything that belongs to it, after its requests or `drain_s`. Idempotent."""

    def log_tail(self, lines: int) -> str:
        """The end of the log of what serves, or of what served last."""


def roll_out(
    release: Release,
    folder: ServiceFolder,
    target: Target,
    open_api: OpenApi,
    prefetch: Prefetch = no_prefetch,
    *,
    last: ServiceState | None = None,
    bring_back: bool = True,
    patient: bool = False,
) -> RolloutResult:
    """Bring `release` into service; nothing is done if it serves already.

    `last` says where a service that was stopped served. If the release is rolled back and what served before does
    not run any more, that one is brought back, unless `bring_back` is False. With `patient` a release that runs
    already has its gate's `start_timeout_s` to answer before it is replaced: it may be busy, or load.

    A model that the engine maps is prefetched beside the check of its bytes and the engine's start: the page
    cache is the host's, and a container's too.

    A release that does not start, or does not answer, is a verdict: `rolled_back`. Raises `PortTakenError`,
    `ModelError` if the model file is not the one that was measured, `RolloutError` if the service runs on
    another target, and what the target raises when it cannot work at all; the former one then serves on.
    """
    set_damage_aside(folder)
    state = folder.state()
    if state is not None and state.target != release.target:
        raise RolloutError(
            f"{release.name} runs on the target {state.target}, and this release is for {release.target}",
            fix=f"end it first: slipway stop {release.name}",
        )
    _sweep_documents(folder)
    if patient and (running := target.running()) is not None and running.release == release.id:
        _await_answer(release, running, target, open_api, release.spec.rollout.gate.start_timeout_s)
    plan = plan_rollout(release, state, _look(release, target, open_api), last)
    if plan.action in _SERVES_ALREADY:
        return _keep(release, plan, folder, target)
    maps = (release.launch.model_file,) if get_engine(release.engine).maps_files else ()
    with prefetch(maps) as prefetched:
        attempt = _start(release, folder, target, open_api, plan, prefetched, last)
        result = attempt.run() if isinstance(attempt, _Attempt) else attempt
    if result.verdict is RolloutVerdict.ROLLED_BACK:
        return _measured(result, release, folder, target, open_api, bring_back=bring_back)
    return result


def _start(
    release: Release,
    folder: ServiceFolder,
    target: Target,
    open_api: OpenApi,
    plan: RolloutPlan,
    prefetched: Prefetched,
    last: ServiceState | None,
) -> RolloutResult | _Attempt:
    """The attempt to make at the claimed address; the result, if the claim has brought the wanted release back."""
    _check_model_file(release)
    port = target.claim(plan.host, plan.port)
    if plan.former is None and (restored := target.running()) is not None:
        # What served when the service's processes were killed is back: it is the former one, or the wanted.
        if restored.release == release.id:
            # A second one may not fit beside it while it loads.
            _await_answer(release, restored, target, open_api, release.spec.rollout.gate.start_timeout_s)
        plan = plan_rollout(release, folder.state(), _look(release, target, open_api), last)
        if plan.action in _SERVES_ALREADY:
            return _keep(release, plan, folder, target)
    return _Attempt(release, folder, target, open_api, plan, port, prefetched)


def _measured(
    result: RolloutResult,
    release: Release,
    folder: ServiceFolder,
    target: Target,
    open_api: OpenApi,
    *,
    bring_back: bool,
) -> RolloutResult:
    """A rollback's result, with what was measured after it: whether the previous release completes a prompt.

    One that runs is never replaced for being slow: it may be busy, and a second engine would take its memory.
    """
    running, state = target.running(), folder.state()
    answered = running is not None and _await_answer(release, running, target, open_api, _BUSY_S)
    if not answered:
        running = target.running()
        is_down = running is None or not running.up
        if is_down and bring_back and state is not None and _bring_back(state, folder, target, open_api):
            running, answered = target.running(), True
    changes = {
        "serving": running.release if running else None,
        "endpoint": running.endpoint if running else None,
        "answers": answered if running or state else None,
    }
    result = result.model_copy(update=changes)
    say(StageName.ROLLOUT, f"{what_serves(result)}: {result.reason}")
    return result


def _bring_back(state: ServiceState, folder: ServiceFolder, target: Target, open_api: OpenApi) -> bool:
    """Start the previous release again, which does not run any more; whether it answers then."""
    try:
        previous = folder.release(state.release)
        if previous is None:
            return False
        say(StageName.ROLLOUT, f"{short(state.release)} does not run any more: it is started again")
        back = roll_out(previous, folder, target, open_api, bring_back=False)
    except StageCancelledError:
        raise
    except SlipwayError as error:
        say(StageName.ROLLOUT, f"{short(state.release)} could not be started again: {error}")
        return False
    return back.verdict is RolloutVerdict.SERVING


def stop_service(folder: ServiceFolder, target: Target, *, drain_s: float) -> bool:
    """End a service; whether there was anything to end. Its releases are kept, and which one it served.

    A document of the service that is damaged keeps no service from being stopped: it is set aside.
    """
    set_damage_aside(folder)
    running, state = target.running(), folder.state()
    was_there = running is not None or state is not None
    if state is not None:
        write_atomically(folder.last_file, state.model_dump_json(by_alias=True, indent=1))
    elif running is not None and (release := folder.release(running.release)) is not None:
        _write_state(release, folder, running.host, running.port, None)
    target.stop(drain_s=drain_s)
    if folder.state_file.exists():
        folder.state_file.unlink()
        fsync_folder(folder.root)
    return was_there


def answers(release: Release, base_url: str, open_api: OpenApi) -> bool:
    """Whether the service really completes a prompt, not only says that it is well."""
    with open_api(base_url) as api:
        if not api.ready():
            return False
        try:
            api.complete(release.config.served_name, release.spec.rollout.gate.prompt, 1)
        except EngineError:
            return False
        return True


def still_serves(
    result: RolloutResult, release: Release, folder: ServiceFolder, target: Target, open_api: OpenApi
) -> bool:
    """Whether what a recorded rollout brought into service is still there, answers, and is written down.

    What serves and is not written down, as after a later rollout that was killed, is for `roll_out` to adopt.
    """
    running = _look(release, target, open_api)
    if running is None or running.endpoint != result.endpoint or not _is_kept(release, folder):
        return False
    if plan_rollout(release, folder.state(), running).action is not RolloutAction.NOTHING:
        return False
    target.claim(running.host, running.port)  # held already: sweeps what a killed rollout left
    return True


def _sweep_documents(folder: ServiceFolder) -> None:
    """Remove unfinished documents of a rollout that was killed while it wrote; never another process' own."""
    unfinished = [
        *folder.root.glob(f"{folder.state_file.name}.*{PART}"),
        *folder.root.glob(f"{folder.last_file.name}.*{PART}"),
        *folder.root.glob(f"releases/*{PART}"),
    ]
    for part in unfinished:
        part.unlink(missing_ok=True)


def _keep(release: Release, plan: RolloutPlan, folder: ServiceFolder, target: Target) -> RolloutResult:
    running = target.running()
    assert running is not None  # else the plan would be to start
    target.claim(running.host, running.port)  # held already: sweeps what a killed rollout left
    if not _is_kept(release, folder):
        _write_document(release, folder)
    if plan.action is RolloutAction.ADOPT:
        _write_state(release, folder, running.host, running.port, plan.previous)
    return _result(
        release,
        plan,
        RolloutVerdict.SERVING,
        endpoint=running.endpoint,
        serving=release.id,
        previous=plan.previous,
    )


def _await_answer(
    release: Release, running: Running, target: Target, open_api: OpenApi, patience_s: float
) -> bool:
    """Whether a release that runs completes a prompt within `patience_s`; False at once if its engine ends."""
    deadline = time.monotonic() + patience_s
    now: Running | None = running
    told = False
    while now is not None and now.up:
        if answers(release, running.endpoint, open_api):
            return True
        if time.monotonic() > deadline:
            return False
        if not told:
            say(StageName.ROLLOUT, f"{release.name} runs and does not answer yet: up to {patience_s:g} s")
            told = True
        current().check()
        time.sleep(_POLL_S)
        now = target.running()
    return False


def _check_model_file(release: Release) -> None:
    """Engines serve damaged weights without complaint: the bytes have to be those that were measured."""
    path = release.launch.model_file
    if not path.exists():
        raise ModelError(f"{path} is gone", fix="deploy again: it is made anew")
    if not is_digest_of_model(release.candidate_digest, path):
        raise ModelError(
            f"{path} has changed since it was measured",
            fix="remove it and deploy again: it is made anew",
        )


def _look(release: Release, target: Target, open_api: OpenApi) -> Running | None:
    """What runs; asked for a completion only where the answer decides something."""
    running = target.running()
    if running is None or running.release != release.id or not running.up:
        return running
    return running.model_copy(update={"up": answers(release, running.endpoint, open_api)})


@dataclass
class _Attempt:
    """One release on its way into service, at a claimed address."""

    release: Release
    folder: ServiceFolder
    target: Target
    open_api: OpenApi
    plan: RolloutPlan
    port: int
    prefetched: Prefetched

    def run(self) -> RolloutResult:
        newcomer: Newcomer | None = None
        failure: EngineError | RolloutError | None = None
        log, settled = "", False
        try:
            say(StageName.ROLLOUT, f"starting {short(self.release.id)}")
            start = time.monotonic()
            newcomer = self.target.start(self.release)
            completion = self._pass_gate(newcomer)
            first_completion_s = time.monotonic() - start
            _write_document(self.release, self.folder)
            self._bring_into_service(newcomer)
            settled = True
        except (EngineError, RolloutError) as error:
            failure, log = error, self._log_of(newcomer) or error.detail or ""
        finally:
            if not settled:
                self._undo(newcomer)
        if failure is not None:
            return self._rolled_back(failure, log)
        # Before the drain: that takes long, and a command that is ended in it leaves the newcomer serving.
        _write_state(self.release, self.folder, self.plan.host, self.port, self.plan.previous)
        say(StageName.ROLLOUT, f"{short(self.release.id)} serves at {self._endpoint}")
        self._end_former()
        return _result(
            self.release,
            self.plan,
            RolloutVerdict.SERVING,
            endpoint=self._endpoint,
            serving=self.release.id,
            previous=self.plan.previous,
            completion=completion.text,
            first_completion_s=first_completion_s,
            prefetched=self.prefetched,
        )

    @property
    def _endpoint(self) -> str:
        return base_url(self.plan.host, self.port)

    def _pass_gate(self, newcomer: Newcomer) -> Completion:
        gate = self.release.spec.rollout.gate
        with self.open_api(newcomer.base_url) as api:
            deadline = time.monotonic() + gate.start_timeout_s
            while not api.ready():
                current().check()
                if fault := self.target.fault(newcomer):
                    raise EngineError(f"the engine died while starting: {fault}")
                if time.monotonic() > deadline:
                    raise EngineError(
                        f"the engine was not ready within {gate.start_timeout_s:g} s",
                        fix="raise rollout.gate.start_timeout_s",
                    )
                time.sleep(_POLL_S)
            try:
                completion = api.complete(self.release.config.served_name, gate.prompt, gate.max_tokens)
            except EngineError as error:
                if fault := self._fault_soon(newcomer):
                    raise EngineError(f"the engine died at its first completion: {fault}") from error
                raise
        say(StageName.ROLLOUT, f"gate passed: {gate.prompt!r} -> {completion.text!r}")
        return completion

    def _fault_soon(self, newcomer: Newcomer) -> str | None:
        """How the newcomer died: a connection breaks a moment before the death is known."""
        deadline = time.monotonic() + _DEATH_NOTICE_S
        while not (fault := self.target.fault(newcomer)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return fault

    def _bring_into_service(self, newcomer: Newcomer) -> None:
        self.target.switch(newcomer)
        with self.open_api(self._endpoint) as api:
            api.complete(self.release.config.served_name, self.release.spec.rollout.gate.prompt, 1)
        self.target.settle(newcomer, drain_s=self.release.spec.rollout.drain_s)

    def _end_former(self) -> None:
        """A release that serves is no failed rollout for what is left of the one before: the next claim ends it."""
        try:
            self.target.end_former(drain_s=self.release.spec.rollout.drain_s)
        except RolloutError as error:
            say(StageName.ROLLOUT, f"what served before is left to the next rollout: {error}")

    def _log_of(self, newcomer: Newcomer | None) -> str:
        if newcomer is None:
            return ""
        try:
            return self.target.newcomer_log(newcomer, _LOG_LINES)
        except RolloutError:
            return ""  # the target itself is what failed

    def _rolled_back(self, error: EngineError | RolloutError, log: str) -> RolloutResult:
        """What takes the traffic now is measured by the caller."""
        state = self.folder.state()
        return _result(
            self.release,
            self.plan,
            RolloutVerdict.ROLLED_BACK,
            endpoint=None,
            serving=None,
            previous=state.previous if state else None,
            reason=str(error),
            log_tail=log or None,
        )

    def _undo(self, newcomer: Newcomer | None) -> None:
        drain_s = self.release.spec.rollout.drain_s
        if newcomer is not None:
            self.target.revert(newcomer, drain_s=drain_s)
        if self.plan.former is None:
            self.target.stop(drain_s=drain_s)


def _is_kept(release: Release, folder: ServiceFolder) -> bool:
    """Whether the release's document is there, and can be read."""
    try:
        return folder.release(release.id) is not None
    except RecordError:
        return False


def _write_document(release: Release, folder: ServiceFolder) -> None:
    write_atomically(folder.release_file(release.id), release.model_dump_json(by_alias=True, indent=1))


def _write_state(release: Release, folder: ServiceFolder, host: str, port: int, previous: str | None) -> None:
    """Say what serves, twice: the copy outlives a stop, and stands in for a damaged `current.json`."""
    state = ServiceState(
        name=release.name,
        target=release.target,
        host=host,
        port=port,
        release=release.id,
        previous=previous,
        since=datetime.now(UTC),
    )
    for file in (folder.state_file, folder.last_file):
        write_atomically(file, state.model_dump_json(by_alias=True, indent=1))


def _result(
    release: Release,
    plan: RolloutPlan,
    verdict: RolloutVerdict,
    *,
    endpoint: str | None,
    serving: str | None,
    previous: str | None,
    completion: str | None = None,
    first_completion_s: float | None = None,
    prefetched: Prefetched | None = None,
    reason: str | None = None,
    log_tail: str | None = None,
) -> RolloutResult:
    return RolloutResult(
        verdict=verdict,
        name=release.name,
        target=release.target,
        action=plan.action,
        release=release.id,
        serving=serving,
        previous=previous,
        endpoint=endpoint,
        completion=completion,
        first_completion_s=first_completion_s,
        prefetched_bytes=prefetched.read_bytes if prefetched and prefetched.read_bytes else None,
        prefetch_s=prefetched.seconds if prefetched and prefetched.read_bytes else None,
        reason=reason,
        log_tail=log_tail,
    )
