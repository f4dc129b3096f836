"""What a deploy needs on this host: checked in milliseconds, before anything is locked, copied or measured.

Each stage checks again when its turn comes; here a wrong input ends the deploy before an hour of tuning.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from blocks.host.home_access import check_home, may
from blocks.host.nvml import gpus_in_use
from blocks.processes.chat_check import check_rendering
from blocks.processes.ports import check_port_free, free_port, is_held_below
from blocks.services.door import read_keys
from blocks.services.source_checks import check_source
from blocks.services.targets import check_image
from blocks.storage.model_source import check_level
from blocks.storage.sources import open_model, resolve
from tasks.core.api_keys import block_name
from tasks.core.chat_template import check_syntax, read_template
from tasks.core.errors import ModelError, PortTakenError, RecordError, SlipwayError, SpecError
from tasks.core.gguf_chat import gguf_chat
from tasks.core.gguf_model import UNQUANTIZED, GgufModel
from tasks.core.model_shape import (
    ModelShape,
    check_convertible,
    parse_model_config,
    parse_model_shape,
    read_model_shape,
)
from tasks.core.model_task import GENERATES, Purpose, Task, purpose_of_folder, settle
from tasks.core.release import ServiceFolder, ServiceState
from tasks.core.settings import Settings
from tasks.core.sources import local_folder
from tasks.core.spec import DeploySpec
from tasks.core.spec_kinds import EngineKind, EnvironmentManager
from tasks.core.spec_sections import Environment, Tuning
from tasks.core.weight_format import WeightFormat
from tasks.engines.arguments import check_arguments
from tasks.engines.as_is import check_as_is
from tasks.engines.catalogue import get_engine
from tasks.engines.parsers import check_parsers
from tasks.engines.weights import check_formats, check_gguf, check_not_as_is
from tasks.environment.plan import parse_requirements
from tasks.lifecycle.plan import wants_absent_gpu
from tasks.rollout.plan import address_of
from tasks.staging.gguf_choice import gguf_model_at
from tasks.staging.plan import CONFIG_FILE
from tasks.staging.remote_code import code_finding, code_in, digests_of
from tasks.staging.source import ModelSource, Pinned, pin
from tasks.staging.weights import weight_format_of
from tasks.tuning.for_task import check_task
from tasks.tuning.plan import check_same_model, check_takes_baseline, check_tunable_gguf
from tasks.tuning.texts import read_calibration, read_task_set, read_text


def check_inputs(
    spec: DeploySpec, settings: Settings, *, remote: bool = True, prefect: bool = True
) -> tuple[str, ...]:
    """Raise a `SlipwayError` that names the first key of the spec that this host cannot satisfy. Remarks about what
    the engine decides at its start.

    Without `remote`, a model on S3 or in a registry is not checked, because the credentials are not known yet.
    Without `prefect`, a Prefect block is not.
    """
    check_keys(spec, prefect=prefect)
    remarks = check_tuning_inputs(spec, settings, remote=remote)
    check_address(spec, settings)
    check_image(spec)
    return remarks


def check_tuning_inputs(spec: DeploySpec, settings: Settings, *, remote: bool = True) -> tuple[str, ...]:
    """The same for everything that tuning needs, which does not put anything into service."""
    remarks: tuple[str, ...] = ()
    check_home(settings, spec.name)
    check_formats(spec.engine, spec.tuning.candidates)
    check_arguments(spec.engine, spec.engine_args)
    check_parsers(spec.engine, spec.serving, spec.engine_args, spec.engine_version)
    if remote or local_folder(spec.model):
        remarks = check_model(spec, settings)
    _check_texts(spec.tuning)
    _check_chat_template(spec)
    _check_environment(spec.environment)
    _check_gpus(spec)
    return remarks


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


def check_model(spec: DeploySpec, settings: Settings) -> tuple[str, ...]:
    """Raise a `SlipwayError` if the model has no files, if this user may not read them, or if it cannot be served as
    the spec asks, by what its names, its configuration and its tokenizer say; staging reads the weights' headers.
    Remarks about what is not known."""
    place = resolve(spec.model, settings).source
    source = open_model(place, spec.tuning.candidates, endpoint=settings.s3_endpoint)
    files = source.list_files()
    if not files:
        raise ModelError(f"there are no files in {place}", fix="check the spec's `model`")
    if folder := local_folder(place):
        check_level(folder, [file.path for file in files])
        home = folder if folder.is_dir() else folder.parent
        denied = next((path for file in files if not may(path := home / file.path, os.R_OK)), None)
        if denied is not None:
            raise ModelError(f"{denied} is not readable", fix=f"allow it: chmod +r {denied}")
    gguf = check_gguf_model(spec, source)
    weights, remark = (None, None) if gguf else check_weights(spec, source)
    purpose = check_purpose(spec, source, gguf)
    check_takes_baseline(spec.tuning, as_is=bool(gguf or weights))
    code = None if gguf else check_code(spec, source)
    if not gguf:
        check_source(spec, Pinned(source, tuple(files)), purpose or GENERATES)
    if spec.tuning.baseline is not None:
        _check_baseline(spec.tuning.baseline, gguf.shape if gguf else shape_in(source), spec.engine, settings)
    return tuple(filter(None, (remark, code)))


def check_purpose(spec: DeploySpec, source: ModelSource, gguf: GgufModel | None) -> Purpose | None:
    """What the model is served for, if it is in a folder here. Raises `SpecError` or `ModelError` if the spec or the
    engine has it otherwise.

    None for a model that is elsewhere: it is judged once it is staged.
    """
    folder, purpose = local_folder(source.name), _purpose_here(spec, source.name, gguf)
    if purpose is None:
        return None
    check_task(spec, purpose, spec.engine_version)
    if (
        gguf is None
        and folder
        and purpose.task is not Task.GENERATE
        and get_engine(spec.engine).card.loads_gguf
    ):
        check_convertible(read_model_shape(folder), f"{folder}/{CONFIG_FILE}", purpose.task)
    return purpose


def _purpose_here(spec: DeploySpec, where: str, gguf: GgufModel | None = None) -> Purpose | None:
    """What the model at `where` is served for; None if it is elsewhere. Raises `SpecError` or `ModelError`."""
    folder = local_folder(where)
    if gguf is not None:
        found = gguf.purpose
    elif folder and (folder / CONFIG_FILE).is_file():
        found = purpose_of_folder(folder)
    else:
        return None
    return settle(spec.task, spec.serving.pooling, found, where)


def check_gguf_model(spec: DeploySpec, source: ModelSource) -> GgufModel | None:
    """The model, if it comes as GGUF, and may be served as the spec asks. Raises `ModelError` or `SpecError`."""
    model = gguf_model_at(source)
    if model is None:
        return None
    check_gguf(spec.engine, spec.tuning.candidates, model.stored_as, source.name)
    check_tunable_gguf(spec.tuning, model.shape.max_context)
    purpose = _purpose_here(spec, source.name, model)
    if purpose is None or purpose.task is Task.GENERATE:
        gguf_chat(model.header, source.name, spec.serving.chat_template, check_rendering)
    return model


def _check_baseline(model: str, shape: ModelShape, kind: EngineKind, settings: Settings) -> None:
    """Raise a `SlipwayError` if the engine does not load the baseline, or if it is quantized itself or another
    model."""
    source = open_model(resolve(model, settings).source, (), endpoint=settings.s3_endpoint)
    gguf = gguf_model_at(source)
    if (gguf is not None) != get_engine(kind).card.loads_gguf:
        comes, loads = ("as", "folders") if gguf else ("in a folder, not as", "files in GGUF")
        raise SpecError(
            f"tuning.baseline {source.name} comes {comes} GGUF, but {kind} loads {loads}",
            fix="give it in the form in which the model comes, or leave tuning.baseline out",
        )
    weights = None if gguf else weight_format_of(pin(source))
    stored = gguf.stored_as if gguf else weights.describe() if weights else None
    if stored is not None and stored not in UNQUANTIZED:
        raise SpecError(
            f"tuning.baseline {source.name} comes quantized ({stored}) itself",
            fix="give the model that is not quantized, or leave tuning.baseline out",
        )
    check_same_model(shape, gguf.shape if gguf else shape_in(source))


def shape_in(source: ModelSource) -> ModelShape:
    """The shape of a model in safetensors by its `config.json`. Raises `ModelError`."""
    pinned = pin(source)
    if not any(file.path == CONFIG_FILE for file in pinned.files):
        raise ModelError(
            f"{source.name} contains no {CONFIG_FILE}", fix="give a folder in the Hugging Face layout"
        )
    return parse_model_shape(pinned.read_whole(CONFIG_FILE), f"{source.name}/{CONFIG_FILE}")


def weights_of(model: str, formats: Sequence[str], settings: Settings) -> WeightFormat | None:
    """How the model comes quantized, wherever it is. None for one that cannot be read: staging says why."""
    try:
        return weight_format_of(pin(open_model(model, formats, endpoint=settings.s3_endpoint)))
    except SlipwayError:
        return None


def type_without_code(model: str, spec: DeploySpec, settings: Settings) -> str | None:
    """The type of a model that brings code along which is not to be run: the engine must know it by itself. None for
    any other model, and for one that cannot be read."""
    if spec.serving.trust_remote_code or get_engine(spec.engine).card.loads_gguf:
        return None
    try:
        pinned = pin(open_model(model, spec.tuning.candidates, endpoint=settings.s3_endpoint))
        if not code_in(pinned):
            return None
        config = parse_model_config(pinned.read_whole(CONFIG_FILE), f"{model}/{CONFIG_FILE}")
    except SlipwayError:
        return None
    named = config.get("model_type")
    return named if isinstance(named, str) else None


def check_code(spec: DeploySpec, source: ModelSource) -> str | None:
    """A remark about the code that the model brings along, if any. Raises `ModelError` if it is to be run, and not
    all of it is there."""
    pinned, trusted = pin(source), spec.serving.trust_remote_code
    code = code_in(pinned)
    finding = code_finding(digests_of(pinned, code, trusted=trusted), code, trusted=trusted)
    return f"{source.name} {finding}" if finding else None


def check_weights(spec: DeploySpec, source: ModelSource) -> tuple[WeightFormat | None, str | None]:
    """How a model in safetensors comes quantized, if it does, and a remark if the engine decides about it. Raises
    `ModelError` or `SpecError` if it cannot be served as the spec asks."""
    weights = weight_format_of(pin(source))
    if weights is None:
        check_not_as_is(spec.tuning.candidates, source.name)
        return None, None
    environment = spec.environment
    built = environment.manager is not EnvironmentManager.SYSTEM
    remark = check_as_is(
        spec.engine,
        weights,
        spec.tuning.candidates,
        source.name,
        capabilities=[one.gpu.compute_capability for one in gpus_in_use(spec.hardware.gpus)],
        requirements=environment.requirements if built else None,
    )
    return weights, remark


def prefect_knows_the_storage() -> bool:
    """Whether the credentials of S3 or a hub are in a Prefect block, so that models cannot be read without an API."""
    return any(os.environ.get(name) for name in ("SLIPWAY_S3_BLOCK", "SLIPWAY_HF_BLOCK"))


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
    """Its syntax; whether it renders is judged with the model's own tokens, where its files can be read."""
    if spec.serving.chat_template:
        check_syntax(read_template(spec.serving.chat_template))


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
