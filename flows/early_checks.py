"""What a deploy needs of this host: looked at in milliseconds, before anything is locked, copied or measured.

Each stage looks again when its turn comes; here a wrong input ends the deploy before an hour of tuning.
"""

from __future__ import annotations

from pathlib import Path

from blocks.model_registry import resolve
from blocks.model_source import open_source
from blocks.nvml import gpus_in_use
from blocks.ports import check_port_free, free_port
from blocks.targets import open_target
from flows.tuning_texts import read_calibration, read_task_set, read_text
from tasks.core.errors import PortTakenError, RecordError, SpecError
from tasks.core.release import ServiceFolder, ServiceState
from tasks.core.settings import Settings
from tasks.core.spec import DeploySpec, Environment, Tuning
from tasks.engines.deployable import wants_absent_gpu
from tasks.engines.weights import check_formats


def check_inputs(spec: DeploySpec, settings: Settings) -> None:
    """Raise a `SlipwayError` that names the first key of the spec that cannot be had on this host."""
    check_tuning_inputs(spec, settings)
    check_address(spec, settings)


def check_tuning_inputs(spec: DeploySpec, settings: Settings) -> None:
    """The same for all that tuning needs: nothing is put into service by it."""
    check_formats(spec.engine, spec.tuning.candidates)
    _check_model(spec, settings)
    _check_texts(spec.tuning)
    _check_environment(spec.environment)
    _check_gpus(spec)


def check_address(spec: DeploySpec, settings: Settings) -> None:
    """Raise `WrongUseError` for a host that is not here, `PortTakenError` for a port that something else has."""
    host, port = spec.rollout.host, spec.rollout.port
    folder = ServiceFolder(settings.services, spec.name)
    state = _state(folder)
    if state is not None and state.host == host and port in (None, state.port):
        return  # the service's own: the rollout deals with whoever listens there
    if port is None:
        free_port(host)
        return
    try:
        check_port_free(host, port)
    except PortTakenError:
        if not _is_held_by_it(spec, folder, settings):
            raise


def _is_held_by_it(spec: DeploySpec, folder: ServiceFolder, settings: Settings) -> bool:
    """Whether the service listens at the wanted address, though a killed rollout did not write that down."""
    with open_target(spec.target, folder, settings) as target:
        running = target.running()
    return running is not None and (running.host, running.port) == (spec.rollout.host, spec.rollout.port)


def _state(folder: ServiceFolder) -> ServiceState | None:
    try:
        return folder.state()
    except RecordError:
        return None  # damaged: the rollout says so, or heals it


def _check_model(spec: DeploySpec, settings: Settings) -> None:
    if spec.model.startswith("file:"):
        open_source(resolve(spec.model, settings).source, endpoint=None).list_files()


def _check_texts(tuning: Tuning) -> None:
    if tuning.quality_text is not None:
        read_text(tuning.quality_text, "tuning.quality_text", tuning.quality_tokens)
    read_calibration(tuning)
    read_task_set(tuning)


def _check_environment(environment: Environment) -> None:
    if environment.wheels is not None and not _is_folder(environment.wheels):
        raise SpecError(
            f"environment.wheels: there is no folder {environment.wheels}", fix="give a folder of wheels"
        )
    if environment.path is not None and not _is_folder(environment.path / "bin"):
        raise SpecError(
            f"environment.path: {environment.path} is not a Python environment",
            fix="name a folder that holds bin/python",
        )


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # not to be looked into, or a name that cannot be
        return False


def _check_gpus(spec: DeploySpec) -> None:
    """An engine that needs one where there is none is the compatibility stage's to refuse: that is a verdict."""
    wanted, found = spec.hardware.gpus, len(gpus_in_use(spec.hardware.gpus))
    if found < wanted and not wants_absent_gpu(spec, found):
        raise SpecError(
            f"hardware.gpus is {wanted}, and {found} can be used on this host",
            fix="lower it (0 serves on the processor); slipway survey shows the GPUs",
        )
