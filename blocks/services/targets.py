"""Where services run: the implementation for each target of the spec."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from blocks.processes.ports import check_port_free, free_port
from tasks.core.release import Release, ServiceFolder
from tasks.core.settings import Settings
from tasks.core.spec import DeploySpec
from tasks.core.spec import Target as TargetKind
from tasks.rollout.container.apply import ContainerService
from tasks.rollout.container.image import make_image
from tasks.rollout.container.inventory import Host
from tasks.rollout.target import Target

if TYPE_CHECKING:
    from blocks.docker.docker_engine import DockerEngine


def open_target(
    kind: TargetKind, folder: ServiceFolder, settings: Settings
) -> AbstractContextManager[Target]:
    """The service's target, until the block is left. Opening it starts nothing."""
    return _TARGETS[kind].open(folder, settings)


def check_target(kind: TargetKind) -> None:
    """Raise `MissingToolError` if services of this kind cannot run on this host."""
    from blocks.services.haproxy import find_haproxy

    find_haproxy(Settings.load())
    _TARGETS[kind].check()


def check_base_image(spec: DeploySpec) -> None:
    """Raise `NetworkError` for a base image that is neither on this host nor in its registry."""
    _TARGETS[spec.target].check_base_image(spec.rollout.base_image)


def prepare(release: Release, settings: Settings) -> Release:
    """The release with what its target needs to be made first: for `docker` the image, by its id.

    Raises `MissingToolError` without a Docker engine, and `RolloutError` if the image cannot be made.
    """
    return _TARGETS[release.target].prepare(release, settings)


@dataclass(frozen=True)
class _Target:
    """How services are run in one way; the functions above say what each of these does."""

    open: Callable[[ServiceFolder, Settings], AbstractContextManager[Target]]
    check: Callable[[], object] = lambda: None
    check_base_image: Callable[[str], object] = lambda image: None
    prepare: Callable[[Release, Settings], Release] = lambda release, settings: release


@contextlib.contextmanager
def _open_process(folder: ServiceFolder, settings: Settings) -> Iterator[Target]:
    from blocks.services.supervisor import SupervisedService

    with SupervisedService(folder) as service:
        yield service


@contextlib.contextmanager
def _open_docker(folder: ServiceFolder, settings: Settings) -> Iterator[Target]:
    from blocks.docker.docker_engine import DockerEngine
    from blocks.services.haproxy import HAProxy

    with DockerEngine.connect() as docker:
        host = Host(open_proxy=HAProxy, free_port=free_port, check_port_free=check_port_free)
        image_of = partial(_image_of, settings=settings, docker=docker)
        yield ContainerService(folder, docker, host, image_of)


def _check_docker() -> None:
    from blocks.docker.config import DockerConfig
    from blocks.docker.docker_engine import DockerEngine

    DockerConfig.read().check_helpers()
    with DockerEngine.connect():
        pass


def _check_base_image(image: str) -> None:
    from blocks.docker.docker_engine import DockerEngine

    with DockerEngine.connect() as docker:
        docker.check_base_image(image)


def _with_image(release: Release, settings: Settings) -> Release:
    from blocks.docker.docker_engine import DockerEngine

    with DockerEngine.connect() as docker:
        return release.model_copy(update={"image": _make_image(release, settings, docker)})


def _image_of(release: Release, *, settings: Settings, docker: DockerEngine) -> str:
    """The release's image; built again if it was removed since, for example by a clean-up before a rollback."""
    if release.image is not None and docker.image_id(release.image) is not None:
        return release.image
    return _make_image(release, settings, docker)


def _make_image(release: Release, settings: Settings, docker: DockerEngine) -> str:
    from blocks.packages.site_packages import install_packages

    return make_image(release, settings, docker, install_packages)


_TARGETS = {
    TargetKind.PROCESS: _Target(_open_process),
    TargetKind.DOCKER: _Target(_open_docker, _check_docker, _check_base_image, _with_image),
}
