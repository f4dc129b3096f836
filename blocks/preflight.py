"""What this host can refuse a deploy for, looked at before anything is built, copied or measured.

The command asks before it starts Prefect, the flow first of all: a deploy from the UI or for a registry's event has
passed no command.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from blocks.model_source import open_source
from blocks.nvml import read_nvml
from blocks.ports import check_port_free, is_held_below
from blocks.targets import check_target
from tasks.core.errors import MissingToolError, ModelError, PortTakenError, SpecError, WrongUseError
from tasks.core.release import ServiceFolder
from tasks.core.settings import Settings
from tasks.core.spec import DeploySpec, EnvironmentManager, Target
from tasks.engines.deployable import wants_absent_gpu
from tasks.engines.weights import check_formats
from tasks.quantization.task_set import parse_task_set
from tasks.rollout.plan import address_of

_FOLDERS = (
    "locks",
    "environments",
    "models",
    "candidates",
    "services",
    "leases",
    "tables",
    "logs",
    "prefect",
)


def check_host(spec: DeploySpec, settings: Settings) -> None:
    """Raise the `SlipwayError` of the first thing that this host lacks for `spec`.

    Looks at the home's permissions, the files that the spec names, the public address, GPUs and what the target
    needs. Changes nothing; takes milliseconds, for target docker as long as the engine needs to answer.
    """
    check_inputs(spec, settings)
    check_address(spec, settings)
    check_target(spec.target)
    if spec.target is Target.DOCKER:
        from blocks.docker_engine import DockerEngine

        with DockerEngine.connect() as docker:
            docker.check_base_image(spec.rollout.base_image)


def check_inputs(spec: DeploySpec, settings: Settings) -> None:
    """The part of `check_host` that making and measuring candidates needs, too."""
    check_home(settings, spec.name)
    check_files(spec)
    there = len(read_nvml().gpus)
    if not wants_absent_gpu(spec, there):  # else it is judged, and the verdict recorded
        check_formats(spec.engine, spec.tuning.candidates)
        check_gpus(spec, there)


def check_model(source: str, settings: Settings) -> None:
    """Raise a `SlipwayError` where there are no files at `source`, or this user may not read them."""
    files = open_source(source, endpoint=settings.s3_endpoint).list_files()
    if not files:
        raise ModelError(f"there are no files in {source}", fix="look at the spec's `model`")
    if source.startswith("file:"):
        folder = Path(source.removeprefix("file:"))
        for file in files:
            if not _may(folder / file.path, os.R_OK):
                raise ModelError(
                    f"{folder / file.path} may not be read", fix=f"allow it: chmod +r {folder / file.path}"
                )


def check_home(settings: Settings, name: str) -> None:
    """Raise `WrongUseError` for a folder or lock below the home that this user may not write to."""
    for folder in _folders(settings, name):
        here = next(one for one in (folder, *folder.parents) if one.exists())
        if not here.is_dir():
            raise WrongUseError(
                f"{here} is not a folder", fix="move it, or set SLIPWAY_HOME to another folder"
            )
        if not _may(here, os.W_OK | os.X_OK):
            raise _not_writable(here)
    lease = settings.service_lease(name)
    if lease.exists() and not _may(lease, os.R_OK | os.W_OK):
        raise _not_writable(lease)


def _folders(settings: Settings, name: str) -> Iterator[Path]:
    """What a deploy writes to."""
    yield settings.home
    yield from (settings.home / folder for folder in _FOLDERS)
    yield settings.services / name
    if "://" not in settings.records:
        yield Path(settings.records).absolute()


def _not_writable(path: Path) -> WrongUseError:
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return WrongUseError(
            f"{path} is on a disk that is mounted read-only",
            fix="mount it for writing, or set SLIPWAY_HOME to a folder on another disk",
        )
    return WrongUseError(
        f"user {os.geteuid()} may not write to {path}, which belongs to user {path.stat().st_uid}",
        fix="run as that user, or set SLIPWAY_HOME to a folder of your own",
    )


def check_files(spec: DeploySpec) -> None:
    """Raise `SpecError` for a file or folder that the spec names and that cannot be read."""
    tuning, environment = spec.tuning, spec.environment
    for key in ("quality_text", "calibration_text"):
        if path := getattr(tuning, key):
            _begin(path, f"tuning.{key}")
    if tuning.task_set is not None:
        text = _begin(tuning.task_set, "tuning.task_set", whole=True)
        try:
            parse_task_set(text.decode(), tuning.task_set.name)
        except UnicodeDecodeError:
            raise SpecError(
                f"tuning.task_set {tuning.task_set}: it is not UTF-8",
                fix="give the path of a file of JSON lines",
            ) from None
    if environment.wheels is not None and not _can_list(environment.wheels):
        raise SpecError(f"environment.wheels {environment.wheels} is not a folder that can be read")
    python = environment.path / "bin" / "python" if environment.path else None
    if environment.manager is EnvironmentManager.SYSTEM and python and not _may(python, os.X_OK):
        raise SpecError(
            f"environment.path {environment.path} holds no bin/python that can be run",
            fix="give the folder of a virtual environment",
        )


def _begin(path: Path, key: str, *, whole: bool = False) -> bytes:
    """The file's first byte, or all of them."""
    try:
        if path.exists() and not path.is_file():
            raise SpecError(f"{key} {path} is not a file", fix="give the path of a text file")
        with path.open("rb") as file:
            return file.read(-1 if whole else 1)
    except OSError as error:
        raise SpecError(
            f"{key} {path} cannot be read: {error.strerror}", fix="give the path of a text file"
        ) from None


def _can_list(folder: Path) -> bool:
    return folder.is_dir() and _may(folder, os.R_OK | os.X_OK)


def check_gpus(spec: DeploySpec, there: int) -> None:
    """Raise `MissingToolError` for more GPUs than the `there` of this host."""
    if spec.hardware.gpus > there:
        raise MissingToolError(
            f"hardware.gpus asks for {spec.hardware.gpus}, and this host has {there or 'none'}",
            fix=f"set hardware.gpus: {there}, or look at: slipway survey",
        )


def check_address(spec: DeploySpec, settings: Settings) -> None:
    """Raise `PortTakenError` or `WrongUseError` for a public address that the service neither has nor can have."""
    folder = ServiceFolder(settings.services, spec.name)
    host, port = address_of(spec.rollout, folder.state())
    try:
        check_port_free(host, port or 0)
    except PortTakenError:
        if port is None or not is_held_below(port, folder.root):
            raise


def _may(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=True)
