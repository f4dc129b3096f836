"""Bring a release into service, or leave the previous one serving."""

from __future__ import annotations

from contextlib import ExitStack

from blocks.host.prefetch import Prefetcher
from blocks.prefect.artifacts import flow_recorder
from blocks.prefect.asked_by_api import check_programs, is_asked_by_api
from blocks.prefect.flows import flow, step
from blocks.services.door import open_service, read_keys
from blocks.services.kept_code import SCRIPTS, TEMPLATES
from blocks.services.rollouts import run_rollout
from blocks.services.targets import open_target, prepare
from tasks.core.allowed import Kind, Program, programs_of_rollout
from tasks.core.leases import share_service
from tasks.core.release import Release, ServiceFolder
from tasks.core.settings import Settings
from tasks.core.stage import Outcome
from tasks.core.verdicts import StageName
from tasks.engines.arguments import programs_of_arguments
from tasks.engines.launches import check_launch
from tasks.rollout import apply
from tasks.rollout.apply import still_serves
from tasks.rollout.damage import set_damage_aside
from tasks.rollout.models import RolloutResult, rollout_inputs
from tasks.staging.store import in_use_by_path


@flow(name="roll-out", flow_run_name="roll out {release.name}")
def roll_out(release: Release) -> Outcome[RolloutResult]:
    """Start a release, let it prove itself, and switch the service's traffic to it without losing a request.

    The service's lease is taken, unless the caller holds it.

    Args:
        release: What to run: the engine's command, the model and everything that was decided about them.
    """
    _check_programs(release)
    settings = Settings.load()
    folder = ServiceFolder(settings.services, release.name)
    with ExitStack() as stack:
        # A rollout takes whatever does not serve for a leftover, another run's new release included.
        stack.enter_context(share_service(settings, release.name))
        set_damage_aside(folder)
        # Until this release has proved itself, none may name its model.
        stack.enter_context(in_use_by_path(release.launch.model_file, settings))
        release = prepare(release, settings)
        target = stack.enter_context(open_target(release.target, folder, settings))
        open_api = open_service(folder)
        bring_into_service = step("bring-into-service", apply.roll_out)
        return run_rollout(
            flow_recorder(),
            folder,
            rollout_inputs(release),
            lambda: bring_into_service(
                release, folder, target, open_api, Prefetcher(StageName.ROLLOUT), read_keys=read_keys
            ),
            still_good=lambda result: still_serves(result, release, folder, target, open_api, read_keys),
        )


def _check_programs(release: Release) -> None:
    """Check that a release requested through the API starts only what Slipway would start, from allowed folders."""
    if not is_asked_by_api():
        return
    check_launch(release, Settings.load().home / SCRIPTS)
    paths = {"environment_path": release.environment_path, "lock_path": release.lock_path}
    own = [Program(key=f"release.{key}", kind=Kind.FOLDER, value=str(path)) for key, path in paths.items()]
    config = release.config
    own += programs_of_arguments(release.engine, config.engine_args, config.engine_env, "release.config.")
    check_programs([*own, *programs_of_rollout(release.spec.rollout, release.target, "release.spec.rollout")])
    if config.remote_code:
        model = str(release.launch.model_file)
        check_programs([Program(key="release.launch.model_file", kind=Kind.FOLDER, value=model)])
    if file := release.config.template_file:
        kept = Program(key="release.config.chat.file", kind=Kind.FOLDER, value=file)
        check_programs([kept], own=(TEMPLATES,))
