"""Bring a release into service, or leave the former one serving.

Whoever changes a service holds its lease: a rollout takes for a leftover whatever does not serve, the newcomer of
another run included. A rollout of its own takes the lease; a deploy holds it already.
"""

from __future__ import annotations

from contextlib import ExitStack

from prefect import flow

from blocks.engine.api import EngineApi
from blocks.host.prefetch import Prefetcher
from blocks.services.kept_code import SCRIPTS
from blocks.services.sampler import see_to_sampler
from blocks.services.targets import open_target, prepare
from flows.asked_by_api import hold_to_list, is_asked_by_api
from flows.recording import Outcome, run_stage
from tasks.core.allowed import Kind, Program, programs_of_rollout
from tasks.core.leases import hold_service
from tasks.core.release import Release, ServiceFolder
from tasks.core.settings import Settings
from tasks.core.verdicts import RolloutVerdict, StageName
from tasks.engines.launches import check_launch
from tasks.rollout import report
from tasks.rollout.apply import still_serves
from tasks.rollout.damage import set_damage_aside
from tasks.rollout.models import RolloutResult, rollout_inputs
from tasks.rollout.task import bring_into_service
from tasks.staging.store import in_use_by_path


@flow(name="roll-out", flow_run_name="roll out {release.name}")
def roll_out(release: Release) -> Outcome[RolloutResult]:
    """Start a release, let it prove itself, and switch the service's traffic to it without losing a request.

    Args:
        release: What to run: the engine's command, the model and everything that was decided about them.
    """
    _hold_to_list(release)
    with hold_service(Settings.load(), release.name):
        return _roll_out(release).as_state()


@flow(name="roll-out", flow_run_name="roll out {release.name}")
def roll_out_under_lease(release: Release) -> Outcome[RolloutResult]:
    """The same, for a flow that holds the service's lease."""
    return _roll_out(release).as_state()


def _hold_to_list(release: Release) -> None:
    """A release that comes by API is served by the command that Slipway would make, in an environment of its own."""
    if not is_asked_by_api():
        return
    check_launch(release, Settings.load().home / SCRIPTS)
    paths = {"environment_path": release.environment_path, "lock_path": release.lock_path}
    own = [Program(key=f"release.{key}", kind=Kind.FOLDER, value=str(path)) for key, path in paths.items()]
    hold_to_list([*own, *programs_of_rollout(release.spec.rollout, release.target, "release.spec.rollout")])


def _roll_out(release: Release) -> Outcome[RolloutResult]:
    settings = Settings.load()
    folder = ServiceFolder(settings.services, release.name)
    set_damage_aside(folder)
    with ExitStack() as stack:
        # Until this release has proved itself, none may name its model.
        stack.enter_context(in_use_by_path(release.launch.model_file, settings))
        release = prepare(release, settings)
        target = stack.enter_context(open_target(release.target, folder, settings))
        outcome = run_stage(
            StageName.ROLLOUT,
            subject=release.name,
            inputs=rollout_inputs(release),
            result_type=RolloutResult,
            report=report,
            work=lambda: bring_into_service(
                release, folder, target, EngineApi, Prefetcher(StageName.ROLLOUT)
            ),
            still_good=lambda result: still_serves(result, release, folder, target, EngineApi),
        )
    if outcome.verdict == RolloutVerdict.SERVING:
        see_to_sampler(folder)
    return outcome
