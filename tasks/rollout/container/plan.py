"""What image and container a release needs. Pure: no clock, network or environment."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tasks.core.digests import digest_of, short
from tasks.core.errors import RolloutError
from tasks.core.pins import pinned_versions
from tasks.core.release import Release
from tasks.engines.base import Engine
from tasks.rollout.container.models import Container, ContainerPlan, ImagePlan

SITE = "site"
"""Folder of the build context with the installed packages."""

SERVICE_LABEL = "slipway.service"
RELEASE_LABEL = "slipway.release"
FOLDER_LABEL = "slipway.folder"
"""Path of the service's folder: two homes on one Docker engine may have services of the same name."""

_ROOT = "/opt/engine"
_PYTHON = f"{_ROOT}/bin/python"
_WORKER = f"{_ROOT}/server.py"
_MODELS = "/model"
_TEMPLATE = "/chat_template.jinja"
_PORT = 8000
_USER = "65532"
"""An unprivileged user: the id that distroless images use."""

_MANYLINUX = "manylinux_2_28"
"""Older than every base image in support, so that the wheels do not depend on which one is chosen."""

_TMP_BYTES = 64 << 20
_CACHE = "/cache"
_MAKERS_ENV = {
    # Engines compile for the GPU that they find, and load the result: `/tmp` is small, and runs no code.
    "HOME": _CACHE,
    "TMPDIR": _CACHE,
    # The user has no name in the image, and Python looks here first.
    "USER": "slipway",
    "PYTHONUNBUFFERED": "1",
    # They send statistics unless they are told not to.
    "DO_NOT_TRACK": "1",
}
"""What an image of an engine's makers is told besides the engine's own variables."""
_KILLED = 128 + signal.SIGKILL
_SHM_BYTES = 64 << 20
_SHM_BYTES_MANY_GPUS = 1 << 30
"""NCCL passes tensors between GPUs of one host through shared memory."""


def plan_image(
    release: Release, engine: Engine, lock_text: str, *, base_id: str, worker_digest: str, machine: str
) -> ImagePlan:
    """The image of a release: what serving needs out of its lock, on a base image given by id.

    `machine` is the processor's name as `platform.machine()` gives it. Raises `RolloutError` if the lock
    lacks a package that serving needs.
    """
    spec = release.spec
    wanted = [
        *engine.card.server_packages,
        *(Requirement(line).name for line in spec.environment.requirements),
    ]
    pins = pins_of(lock_text, wanted, release.lock_path)
    dockerfile = _dockerfile(engine, base_id, spec.environment.python)
    platform = f"{machine}-{_MANYLINUX}"
    locked = [line for line in lock_text.splitlines() if not line.lstrip().startswith("#")]
    content = digest_of([dockerfile, locked, pins, platform, worker_digest])
    return ImagePlan(
        name=f"slipway/{engine.kind}:{short(content)}",
        dockerfile=dockerfile,
        pins=pins,
        lock=release.lock_path,
        python=spec.environment.python,
        platform=platform,
        files={"server.py": worker_of(engine)},
        base_image=spec.rollout.base_image,
        system_libraries=tuple(library.package for library in engine.card.system_library),
    )


def worker_of(engine: Engine) -> Path:
    """The script that an image built from a lock starts. Raises `RolloutError` for engines that have none."""
    if engine.server_worker is None or not engine.builds_images:
        raise RolloutError(
            f"Slipway cannot build an image of {engine.kind} from a lock",
            fix="set target: process, or use another engine",
        )
    return engine.server_worker


def pins_of(lock_text: str, names: Iterable[str], lock: Path) -> tuple[str, ...]:
    """`name==version` of each name, as the lock has it."""
    versions = pinned_versions(lock_text)
    wanted = {canonicalize_name(one.name): one for one in sorted(map(Requirement, names), key=str)}
    missing = [name for name in wanted if name not in versions]
    if missing:
        raise RolloutError(
            f"the lock {lock} lacks {', '.join(missing)}, which serving needs",
            fix="build the environment again: delete the lock, then deploy",
        )
    extras = {name: f"[{','.join(sorted(one.extras))}]" if one.extras else "" for name, one in wanted.items()}
    return tuple(f"{name}{extras[name]}=={versions[name]}" for name in sorted(wanted))


def _dockerfile(engine: Engine, base_id: str, python: str) -> str:
    """The base's own Python as a virtual environment, the packages in it, and a proof that they load.

    The proof is a step of the build, so an image that bears the name has passed it. Everything comes from the
    context: the build needs no network. No BuildKit syntax: not every engine has it.

    What a base image says about how it is used is taken back: its user, who may not write here, an entry point, which
    would get the engine's command as arguments, folder, check, signal and paths of Python.
    """
    version = tuple(int(part) for part in python.split("."))
    check = f"import sys; sys.exit(sys.version_info[:2] != {version} and sys.version)"
    proof = f"import {', '.join(engine.card.server_imports)}"
    lines = [
        f"FROM {base_id}",
        "USER 0:0",
        "WORKDIR /",
        "ENTRYPOINT []",
        "HEALTHCHECK NONE",
        "STOPSIGNAL SIGTERM",
        "ENV PYTHONPATH= PYTHONHOME=",
        f"RUN {json.dumps(['python3', '-c', check])}",
        f"RUN {json.dumps(['python3', '-m', 'venv', '--without-pip', _ROOT])}",
        f"COPY {SITE} {_ROOT}/lib/python{python}/site-packages",
        f"COPY server.py {_WORKER}",
        f"RUN {json.dumps([_PYTHON, '-I', '-c', proof])}",
        "ENV HOME=/tmp PYTHONUNBUFFERED=1",
        f"USER {_USER}:{_USER}",
        f"EXPOSE {_PORT}",
    ]
    return "\n".join(lines) + "\n"


def plan_container(
    release: Release, engine: Engine, *, image: str, folder: Path, user: str, host_port: int
) -> ContainerPlan:
    """The container of a release, with every limit of its spec, published on `host_port` of the loopback."""
    spec = release.spec
    makers = engine.card.image if spec.rollout.image is not None else None
    model = f"{_MODELS}/{release.launch.model_file.name}"
    # Inside, the GPUs that it gets are all that there are, with numbers of their own.
    chat = release.config.chat
    template = chat.file if chat else None
    if chat and template:
        chat = chat.model_copy(update={"file": Path(_TEMPLATE)})
    config = release.config.model_copy(update={"gpu_indices": (), "chat": chat})
    command = engine.command(makers.python if makers else _PYTHON, _WORKER, model, config)
    gpus, chosen = spec.hardware.gpus, release.config.gpu_indices
    shm = _SHM_BYTES_MANY_GPUS if gpus > 1 else _SHM_BYTES
    files = {_TEMPLATE: template} if template else {}
    if makers and engine.server_worker:
        files[_WORKER] = _kept_worker(release, engine.server_worker.name)
    return ContainerPlan(
        name=f"slipway-{release.name}-{short(release.id)}-{host_port}",
        image=image,
        argv=command.at("0.0.0.0", _PORT),
        own_entrypoint=makers is not None,
        env={**(_MAKERS_ENV if makers else {}), **command.env},
        labels={SERVICE_LABEL: release.name, RELEASE_LABEL: release.id, FOLDER_LABEL: str(folder)},
        user=user,
        model_source=release.launch.model_file,
        model_target=model,
        files=files,
        port=_PORT,
        host_port=host_port,
        memory_bytes=spec.hardware.memory,
        cpus=spec.hardware.cpus,
        pids=spec.rollout.pids,
        shm_bytes=max(shm, makers.shm_bytes) if makers else shm,
        tmp_bytes=_TMP_BYTES,
        cache_target=_CACHE,
        cache_bytes=makers.cache_bytes if makers else 0,
        gpus=gpus,
        gpu_indices=chosen if len(chosen) == gpus else (),
    )


def _kept_worker(release: Release, name: str) -> Path:
    """The release's own copy of the script that starts its engine."""
    return next(path for word in release.launch.argv if (path := Path(word)).name == name)


def container_user(uid: int, gid: int) -> str:
    """The user that the container runs as: the one who deploys, so that the model is readable, but never root."""
    return f"{uid}:{gid}" if uid != 0 else f"{_USER}:{_USER}"


def cause_of_death(container: Container) -> str | None:
    """Why a container does not run; None while it does or is about to.

    Docker hears of the kernel's reason and of the end by two events, in any order: a container with a limit that was
    killed just now may not be said to have gone over it yet.
    """
    if container.status in ("running", "created"):
        return None
    limit = f" of {container.memory_bytes / 2**20:.0f} MiB" if container.memory_bytes else ""
    if container.oom_killed:
        return f"it went over its memory limit{limit} and was killed; raise hardware.memory"
    if limit and container.exit_code == _KILLED:
        return f"it was killed, as what goes over its memory limit{limit} is; raise hardware.memory"
    return f"exit status {container.exit_code}"
