"""Compare the services that should run with those that do, and bring back what is down.

A look each minute leaves no trace where all is well (`flows/quiet_runs.py`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

from prefect import flow

from blocks.engine_api import EngineApi, is_silent
from blocks.prefetch import Prefetcher
from blocks.sampler import sampler_pid, see_to_sampler
from blocks.targets import open_target
from flows.named_states import named
from flows.quiet_runs import NOTHING_NEW, WAITING, forget_quiet_runs
from flows.recording import Outcome, run_stage
from tasks.core.errors import BusyError, SlipwayError, StageCancelledError
from tasks.core.leases import bring_back
from tasks.core.progress import say
from tasks.core.release import ServiceFolder
from tasks.core.settings import Settings
from tasks.core.verdicts import RolloutVerdict, StageName
from tasks.rollout import report
from tasks.rollout.damage import needs_mending, set_damage_aside
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
from tasks.rollout.recovery.models import Past, Step
from tasks.rollout.recovery.plan import after_failure, is_news, next_step
from tasks.rollout.target import Target

Attempt = RolloutResult | SlipwayError


@flow(name="keep-running", flow_run_name="keep services running")
def keep_running() -> list[Outcome[RolloutResult]]:
    """Look once at every service of this host that should run, and bring back those that are down.

    The look itself holds no lease; what has to be done is looked at again under it. A service that something else
    works on is left to it, and a `stop` ends what brings its service back. One that fails to come back is tried
    again after 1, 3, 7 … looks, at most 60. The answers are those that a record was made of.
    """
    settings = Settings.load()
    looks: list[ServiceLook] = []
    for folder in should_run(settings.services):
        try:
            if _is_well(folder, settings):
                continue
            with bring_back(settings, folder.name, by="keep-running", wait_s=0):
                looks.append(look_under_lease(folder, settings))
        except BusyError:
            continue
        except StageCancelledError as ended:
            looks.append(ServiceLook(folder.name, Step.NOTHING, f"is not brought back: {ended.what}"))
        except (SlipwayError, OSError) as error:  # of one service: the others are looked at all the same
            say(StageName.ROLLOUT, f"{folder.name} could not be looked at: {error}")
            looks.append(ServiceLook(folder.name, Step.WAIT, f"could not be looked at: {error}"))
    forget_quiet_runs(StageName.ROLLOUT)
    outcomes = [look.outcome for look in looks if look.outcome]
    words = "; ".join(f"{look.name} {look.finding}" for look in looks if look.finding)
    acted = [look for look in looks if look.step in (Step.START, Step.RESTART_ENGINE)]
    if acted:
        failed = any(look.failed for look in acted)
        return named(outcomes, "Still down" if failed else "Brought back", words, says_no=failed)
    if words:
        return named(outcomes, WAITING, words)
    return named(outcomes, NOTHING_NEW, "every service that should run does")


@dataclass(frozen=True)
class ServiceLook:
    """What was found of one service, in words if there is anything to say."""

    name: str
    step: Step
    finding: str = ""
    outcome: Outcome[RolloutResult] | None = None
    failed: bool = False


def _is_well(folder: ServiceFolder, settings: Settings) -> bool:
    """Whether there is nothing to do or to remember. Holds no lease: a look is in the way of no command."""
    if needs_mending(folder) or sampler_pid(folder) is None:
        return False
    past = read_past(folder)
    with open_target(target_of(folder), folder, settings) as target:
        return next_step(past, look_at(target, is_silent)) == (Step.NOTHING, past)


def look_under_lease(folder: ServiceFolder, settings: Settings) -> ServiceLook:
    """Look at one service, whose lease the caller holds, and bring it back if it is down.

    Raises for what ails the look, and `StageCancelledError` if the run ends. An attempt that fails is an answer.
    """
    set_damage_aside(folder)
    if not folder.state_file.exists():
        return ServiceLook(folder.name, Step.NOTHING)  # stopped since the names were read
    past = read_past(folder)
    with open_target(target_of(folder), folder, settings) as target:
        step, past = next_step(past, look_at(target, is_silent))
        write_past(folder, past)
        if step is Step.RESTART_ENGINE and isinstance(target, Unwatched):
            say(StageName.ROLLOUT, f"{folder.name}: requests wait, no byte comes, /health is silent: killed")
            target.restart()
            return ServiceLook(folder.name, step, "hung: its engine was killed and started again")
        if step is Step.START:
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
    say(StageName.ROLLOUT, f"{folder.name} is down: it is started again")
    attempt: Attempt
    try:
        attempt = start_service(folder, target, EngineApi, Prefetcher(StageName.ROLLOUT))
    except StageCancelledError:
        write_past(folder, Past())
        raise
    except SlipwayError as error:
        attempt = error
    reason = _reason(attempt)
    write_past(folder, Past() if reason is None else after_failure(past, reason))
    finding = "serves again" if reason is None else f"is still down: {reason}"
    say(StageName.ROLLOUT, f"{folder.name} {finding}")
    if reason is None:
        see_to_sampler(folder)
    outcome = _record(folder, target, attempt, begin) if is_news(past, reason) else None
    return ServiceLook(folder.name, Step.START, finding, outcome, failed=reason is not None)


def _record(
    folder: ServiceFolder, target: Target, attempt: Attempt, begin: float
) -> Outcome[RolloutResult] | None:
    """Record and publish the attempt as a rollout; None for a fault."""
    try:
        inputs = rollout_inputs(release_to_start(folder, target)[1])
    except SlipwayError:
        inputs = {"service": folder.name}
    try:
        return run_stage(
            StageName.ROLLOUT,
            subject=folder.name,
            inputs=inputs,
            result_type=RolloutResult,
            report=report,
            work=partial(_answer, attempt),
            began=begin,
            by=KEEP_RUNNING,
        )
    except SlipwayError:
        return None  # recorded; the next look tries again


def _answer(attempt: Attempt) -> RolloutResult:
    if isinstance(attempt, SlipwayError):
        raise attempt
    return attempt


def _reason(attempt: Attempt) -> str | None:
    """Why the service does not serve; None if it does."""
    if isinstance(attempt, SlipwayError):
        return attempt.what
    return None if attempt.verdict is RolloutVerdict.SERVING else attempt.reason
