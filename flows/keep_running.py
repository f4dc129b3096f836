"""Compare the services that should run with those that do, and bring back what is down.

A look each minute leaves no trace if all is well (`blocks/prefect/quiet_runs.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from blocks.engine.api import is_silent
from blocks.host.prefetch import Prefetcher
from blocks.prefect.artifacts import flow_recorder
from blocks.prefect.flows import flow, show_state
from blocks.prefect.quiet_runs import NOTHING_NEW, WAITING, forget_quiet_runs
from blocks.processes.deadline import await_answer, start
from blocks.services.door import open_service, read_keys
from blocks.services.rollouts import run_rollout
from blocks.services.sampler import sampler_pid, see_to_sampler
from blocks.services.supervisor import SilentError, SupervisedService
from blocks.services.targets import open_target
from tasks.core.disk_faults import disk_fault
from tasks.core.errors import BusyError, SlipwayError, StageCancelledError
from tasks.core.leases import bring_back
from tasks.core.progress import say
from tasks.core.release import ServiceFolder
from tasks.core.settings import Settings
from tasks.core.stage import Outcome, raising
from tasks.core.verdicts import RolloutVerdict, StageName
from tasks.rollout.damage import needs_repair, set_damage_aside
from tasks.rollout.models import KEEP_RUNNING, RolloutResult, rollout_inputs
from tasks.rollout.recovery.apply import (
    Unwatched,
    look_at,
    read_past,
    release_to_start,
    should_run,
    start_service,
    target_of,
    write_past,
)
from tasks.rollout.recovery.models import Condition, Past, Sight, Step
from tasks.rollout.recovery.plan import after_blind_look, after_failure, is_news, next_step
from tasks.rollout.target import Target

Attempt = RolloutResult | SlipwayError

LOOK_DEADLINE_S = 45.0
"""Limit for reading the state of a service. All are checked at once, and the next check comes after a minute."""

START_DEADLINE_S = 7200.0
"""Limit for restarting a service: its model is read, and it may load twice."""

STILL_DOWN = "Still down"
"""State of a look that failed to bring a service back."""

COULD_NOT_LOOK = "Could not look"
"""State of a look that could not see a service, for a reason that is new."""


@flow(name="keep-running", flow_run_name="keep services running")
def keep_running() -> list[Outcome[RolloutResult]]:
    """Look once at every service of this host that should run, and bring back those that are down.

    The look itself holds no lease; what has to be done is looked at again under it. A service that something else
    works on is left to it, and a `stop` ends what brings its service back. One that fails to come back is tried
    again after 1, 3, 7 … looks, at most 60. The answers are those that a record was made of. One that cannot be
    looked at is a no, once for each reason.
    """
    settings = Settings.load()
    watches = [_Watch(folder, settings) for folder in should_run(settings.services)]
    looks = [look for watch in watches if (look := watch.look())]
    forget_quiet_runs(StageName.ROLLOUT)
    outcomes = [look.outcome for look in looks if look.outcome]
    words = "; ".join(f"{look.name} {look.finding}" for look in looks if look.finding)
    acted = [look for look in looks if look.step in (Step.START, Step.RESTART_ENGINE)]
    if any(look.failed for look in acted):
        show_state(STILL_DOWN, words, says_no=True)
    elif any(look.failed for look in looks):
        show_state(COULD_NOT_LOOK, words, says_no=True)
    elif acted:
        show_state("Brought back", words)
    elif words:
        show_state(WAITING, words)
    else:
        show_state(NOTHING_NEW, "every service that should run does")
    return outcomes


class _Watch:
    """The look at one service, in a thread of its own: one that hangs, or loads for an hour, blinds no other.

    While a service starts, it holds its lease, and the looks of the next minutes pass it by.
    """

    def __init__(self, folder: ServiceFolder, settings: Settings) -> None:
        self._folder = folder
        self._settings = settings
        self._deadline = time.monotonic() + LOOK_DEADLINE_S
        self._answer = start(self._run)

    def look(self) -> ServiceLook | None:
        """What was found; None if something else works on the service."""
        while True:
            try:
                return await_answer(self._answer, self._deadline, f"the look at {self._folder.name}")
            except BusyError:
                return None
            except StageCancelledError as ended:
                return ServiceLook(self._folder.name, Step.NOTHING, f"is not brought back: {ended.what}")
            except Exception as error:  # noqa: BLE001 - it is recorded, and the other services are checked
                if not self._answer.done() and time.monotonic() < self._deadline:
                    continue  # a start has begun, which extends the deadline
                return _blind(self._folder, error)

    def _run(self) -> ServiceLook:
        if _is_well(self._folder, self._settings):
            return ServiceLook(self._folder.name, Step.NOTHING)
        with bring_back(self._settings, self._folder.name, by="keep-running", wait_s=0):
            return look_under_lease(self._folder, self._settings, self._begin_start)

    def _begin_start(self) -> None:
        self._deadline = time.monotonic() + START_DEADLINE_S


@dataclass(frozen=True)
class ServiceLook:
    """What was found of one service, in words if there is anything to say."""

    name: str
    step: Step
    finding: str = ""
    outcome: Outcome[RolloutResult] | None = None
    failed: bool = False


def _blind(folder: ServiceFolder, error: Exception) -> ServiceLook:
    """A look that failed; a record of it, and a no, if it is news."""
    fault = _fault_of(error, folder)
    say(StageName.ROLLOUT, f"{folder.name} could not be checked: {fault}")
    past = read_past(folder)
    news = is_news(past, fault.what)
    _note(folder, after_blind_look(past, fault.what))
    if news:
        _record(folder, {"service": folder.name}, fault, time.monotonic())
    return ServiceLook(folder.name, Step.WAIT, f"could not be checked: {fault}", failed=news)


def _fault_of(error: Exception, folder: ServiceFolder) -> SlipwayError:
    if isinstance(error, SlipwayError):
        return error
    told = disk_fault(error, folder.root) if isinstance(error, OSError) else None
    return told or SlipwayError(f"{type(error).__name__}: {error}")


def _note(folder: ServiceFolder, past: Past) -> None:
    """A full disk keeps no service from being brought back."""
    try:
        write_past(folder, past)
    except (SlipwayError, OSError) as error:
        say(StageName.ROLLOUT, f"{folder.name}: the result of this check could not be saved: {error}")


def _see(folder: ServiceFolder, target: Target, past: Past) -> tuple[Sight, Past]:
    """The service's condition. A supervisor that two looks in a row found silent is ended: it is down then."""
    try:
        return look_at(target, is_silent), past.model_copy(update={"silent_looks": 0})
    except SilentError:
        past = past.model_copy(update={"silent_looks": past.silent_looks + 1})
        _note(folder, past)
        if past.silent_looks < 2 or not isinstance(target, SupervisedService):
            raise
    say(StageName.ROLLOUT, f"{folder.name}: its supervisor runs but does not answer: killed it")
    target.kill()
    return Sight(condition=Condition.DOWN), past.model_copy(update={"silent_looks": 0, "wait_looks": 0})


def _is_well(folder: ServiceFolder, settings: Settings) -> bool:
    """Whether there is nothing to do or to remember. Holds no lease: a look is in the way of no command."""
    if needs_repair(folder) or sampler_pid(folder) is None:
        return False
    past = read_past(folder)
    try:
        with open_target(target_of(folder), folder, settings) as target:
            return past.silent_looks == 0 and next_step(past, look_at(target, is_silent)) == (
                Step.NOTHING,
                past,
            )
    except SilentError:
        return False


def look_under_lease(
    folder: ServiceFolder, settings: Settings, begin_start: Callable[[], None] = lambda: None
) -> ServiceLook:
    """Look at one service, whose lease the caller holds, and bring it back if it is down.

    `begin_start` is called before it is started, which takes longer than a look. Raises for what ails the look, and
    `StageCancelledError` if the run ends. An attempt that fails is an answer.
    """
    set_damage_aside(folder)
    if not folder.state_file.exists():
        return ServiceLook(folder.name, Step.NOTHING)  # stopped since the names were read
    past = read_past(folder)
    with open_target(target_of(folder), folder, settings) as target:
        sight, past = _see(folder, target, past)
        step, past = next_step(past, sight)
        _note(folder, past)
        if step is Step.RESTART_ENGINE and isinstance(target, Unwatched):
            say(
                StageName.ROLLOUT,
                f"{folder.name}: requests wait, the engine sends nothing and /health does not answer: killed it",
            )
            target.restart()
            return ServiceLook(folder.name, step, "hung: its engine was killed and started again")
        if step is Step.START:
            begin_start()
            return _bring_back(folder, target, past)
    if step is Step.WAIT:
        return ServiceLook(
            folder.name, step, f"is down: {past.reason or 'its engine does not run'}; it is tried again"
        )
    if sampler_pid(folder) is None:
        see_to_sampler(folder)
    return ServiceLook(folder.name, step)


def _bring_back(folder: ServiceFolder, target: Target, past: Past) -> ServiceLook:
    """Start the service; a record of it if it is news."""
    begin = time.monotonic()
    say(StageName.ROLLOUT, f"{folder.name} is down: starting it again")
    attempt: Attempt
    try:
        attempt = start_service(
            folder, target, open_service(folder), Prefetcher(StageName.ROLLOUT), read_keys
        )
    except StageCancelledError:
        _note(folder, Past())
        raise
    except (SlipwayError, OSError) as error:
        attempt = _fault_of(error, folder)
    reason = _reason(attempt)
    _note(folder, Past() if reason is None else after_failure(past, reason))
    finding = "serves again" if reason is None else f"is still down: {reason}"
    say(StageName.ROLLOUT, f"{folder.name} {finding}")
    outcome = _record(folder, _inputs(folder, target), attempt, begin) if is_news(past, reason) else None
    if reason is None:
        see_to_sampler(folder)
    return ServiceLook(folder.name, Step.START, finding, outcome, failed=reason is not None)


def _inputs(folder: ServiceFolder, target: Target) -> Mapping[str, Any]:
    try:
        return rollout_inputs(release_to_start(folder, target)[1])
    except (SlipwayError, OSError):
        return {"service": folder.name}


def _record(
    folder: ServiceFolder, inputs: Mapping[str, Any], attempt: Attempt, begin: float
) -> Outcome[RolloutResult] | None:
    """Record and publish the attempt as a rollout; None for a fault."""
    try:
        work = raising(attempt) if isinstance(attempt, SlipwayError) else lambda: attempt
        return run_rollout(flow_recorder(), folder, inputs, work, began=begin, by=KEEP_RUNNING)
    except (SlipwayError, OSError):
        return None  # recorded; the next look tries again


def _reason(attempt: Attempt) -> str | None:
    """Why the service does not serve; None if it does."""
    if isinstance(attempt, SlipwayError):
        return attempt.what
    return None if attempt.verdict is RolloutVerdict.SERVING else attempt.reason
