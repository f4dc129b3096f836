"""What a deploy needs on this host: checked in milliseconds, before anything is locked, copied or measured.

Each stage checks again when its turn comes; here a wrong input ends the deploy before an hour of tuning.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from blocks.host.home_access import check_home, may
from blocks.host.nvml import gpus_in_use
from blocks.processes.ports import check_port_free, free_port, is_held_below
from blocks.services.door import read_keys
from blocks.services.targets import check_base_image
from blocks.storage.sources import open_model, resolve
from tasks.core.api_keys import block_name
from tasks.core.chat_template import check_syntax, read_template
from tasks.core.chat_tokens import chat_template_in
from tasks.core.errors import ModelError, PortTakenError, RecordError, SpecError
from tasks.core.gguf_model import GgufModel
from tasks.core.model_shape import check_convertible, read_model_shape
from tasks.core.model_task import Purpose, Task, purpose_of_folder, settle
from tasks.core.release import ServiceFolder, ServiceState
from tasks.core.settings import Settings
from tasks.core.sources import GGUF, local_folder
from tasks.core.spec import DeploySpec, Environment, EnvironmentManager, Tuning
from tasks.engines.arguments import check_arguments
from tasks.engines.catalogue import get_engine
from tasks.engines.weights import check_formats, check_gguf, check_not_as_is
from tasks.environment.plan import parse_requirements
from tasks.lifecycle.plan import wants_absent_gpu
from tasks.rollout.plan import address_of
from tasks.staging.gguf_choice import gguf_model_at
from tasks.staging.source import ModelSource
from tasks.tuning.plan import check_task, check_tunable_gguf
from tasks.tuning.texts import read_calibration, read_task_set, read_text


def check_inputs(spec: DeploySpec, settings: Settings, *, remote: bool = True, prefect: bool = True) -> None:
    """Raise a `SlipwayError` that names the first key of the spec that this host cannot satisfy.

    Without `remote`, a model on S3 or in a registry is not checked, because the credentials are not known yet.
    Without `prefect`, a Prefect block is not.
    """
    check_keys(spec, prefect=prefect)
    check_tuning_inputs(spec, settings, remote=remote)
    check_address(spec, settings)
    check_base_image(spec)


def check_tuning_inputs(spec: DeploySpec, settings: Settings, *, remote: bool = True) -> None:
    """The same for everything that tuning needs, which does not put anything into service."""
    check_home(settings, spec.name)
    check_formats(spec.engine, spec.tuning.candidates)
    check_arguments(spec.engine, spec.engine_args)
    if remote or local_folder(spec.model):
        check_model(spec, settings)
    _check_texts(spec.tuning)
    _check_chat_template(spec)
    _check_environment(spec.environment)
    _check_gpus(spec)


def check_keys(spec: DeploySpec, *, prefect: bool = True) -> None:
    """Raise a `SlipwayError` if the secret that `serving.api_key` names contains no keys."""
    reference = spec.serving.api_key
    if reference and (prefect or block_name(reference) is None):
        read_keys(reference)


def check_address(spec: DeploySpec, settings: Settings) -> None:
    """Raise `WrongUseError` for an address of another host, `PortTakenError` for a port in use."""
    folder = ServiceFolder(settings.services, spec.name)
    host, port = address_of(spec.rollout, _state(folder))
    if port is None:
        free_port(host)
        return
    try:
        check_port_free(host, port)
    except PortTakenError:
        if not is_held_below(port, folder.root):  # by its supervisor or proxy: the rollout takes it over
            raise


def check_model(spec: DeploySpec, settings: Settings) -> None:
    """Raise a `SlipwayError` if the model has no files, if this user may not read them, or if it comes as GGUF and
    cannot be served as the spec asks."""
    place = resolve(spec.model, settings).source
    source = open_model(place, spec.tuning.candidates, endpoint=settings.s3_endpoint)
    files = source.list_files()
    if not files:
        raise ModelError(f"there are no files in {place}", fix="check the spec's `model`")
    if folder := local_folder(place):
        _check_level(folder, [file.path for file in files])
        home = folder if folder.is_dir() else folder.parent
        denied = next((path for file in files if not may(path := home / file.path, os.R_OK)), None)
        if denied is not None:
            raise ModelError(f"{denied} is not readable", fix=f"allow it: chmod +r {denied}")
    check_purpose(spec, source, check_gguf_model(spec, source))


def check_purpose(spec: DeploySpec, source: ModelSource, gguf: GgufModel | None) -> Purpose | None:
    """What the model is served for, if it is in a folder here. Raises `SpecError` or `ModelError` if the spec or the
    engine has it otherwise.

    None for a model that is elsewhere: it is judged once it is staged.
    """
    folder = local_folder(source.name)
    if gguf is not None:
        found = gguf.purpose
    elif folder and (folder / "config.json").is_file():
        found = purpose_of_folder(folder)
    else:
        return None
    purpose = settle(spec.task, spec.serving.pooling, found, source.name)
    check_task(spec, purpose, spec.engine_version)
    if (
        gguf is None
        and folder
        and purpose.task is not Task.GENERATE
        and get_engine(spec.engine).card.loads_gguf
    ):
        check_convertible(read_model_shape(folder), f"{folder}/config.json", purpose.task)
    return purpose


def _check_level(folder: Path, names: Sequence[str]) -> None:
    """Raise `ModelError` if the folder has no weights, but one in it has GGUF files: that is how large ones come."""
    if any(name.endswith(GGUF) or ".safetensors" in name for name in names):
        return
    below = next((path.parent for path in sorted(folder.glob(f"*/*{GGUF}"))), None)
    if below is not None:
        raise ModelError(
            f"{folder} contains no weights, but its folder {below.name} has GGUF files",
            fix=f"set model: file:{below}",
        )


def check_gguf_model(spec: DeploySpec, source: ModelSource) -> GgufModel | None:
    """The model, if it comes as GGUF, and may be served as the spec asks. Raises `ModelError` or `SpecError`."""
    model = gguf_model_at(source)
    if model is None:
        check_not_as_is(spec.tuning.candidates, source.name)
        return None
    check_gguf(spec.engine, spec.tuning.candidates, model.stored_as, source.name)
    check_tunable_gguf(spec.tuning, model.shape.max_context)
    return model


def prefect_knows_the_storage() -> bool:
    """Whether the credentials of models on S3 are in a Prefect block, so that they cannot be read without an API."""
    return bool(os.environ.get("SLIPWAY_S3_BLOCK"))


def _state(folder: ServiceFolder) -> ServiceState | None:
    try:
        return folder.state()
    except RecordError:
        return None  # damaged: the rollout reports or repairs it


def _check_texts(tuning: Tuning) -> None:
    if tuning.quality_text is not None:
        read_text(tuning.quality_text, "tuning.quality_text", tuning.quality_tokens)
    read_calibration(tuning)
    read_task_set(tuning)


def _check_chat_template(spec: DeploySpec) -> None:
    """With the model's own tokens if they are in a folder here; otherwise when it is staged."""
    given, folder = spec.serving.chat_template, local_folder(spec.model)
    if folder and any(folder.glob("*.safetensors")):
        chat_template_in(folder, given)
    elif given:
        check_syntax(read_template(given))


def _check_environment(environment: Environment) -> None:
    if environment.manager is EnvironmentManager.UV:
        parse_requirements("\n".join(environment.requirements), "environment.requirements")
    if environment.wheels is not None and not _is_folder(environment.wheels):
        raise SpecError(
            f"environment.wheels: there is no folder {environment.wheels}", fix="give a folder of wheels"
        )
    if environment.path is not None and not _is_folder(environment.path / "bin"):
        raise SpecError(
            f"environment.path: {environment.path} is not a Python environment",
            fix="name a folder that contains bin/python",
        )


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # not accessible, or an impossible name
        return False


def _check_gpus(spec: DeploySpec) -> None:
    """Not for an engine that needs a GPU on a host without one: the compatibility stage refuses that with a
    verdict."""
    wanted, found = spec.hardware.gpus, len(gpus_in_use(spec.hardware.gpus))
    if found < wanted and not wants_absent_gpu(spec, found):
        raise SpecError(
            f"hardware.gpus is {wanted}, but only {found} can be used on this host",
            fix="lower it (0 serves on the CPU); slipway survey shows the GPUs",
        )
