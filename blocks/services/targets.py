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
from tasks.core.spec_kinds import Target as TargetKind
from tasks.engines.catalogue import get_engine
from tasks.rollout.container.apply import ContainerService
from tasks.rollout.container.image import make_image
from tasks.rollout.container.inventory import Host
from tasks.rollout.container.makers import check_same
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


def check_image(spec: DeploySpec) -> None:
    """Raise `NetworkError` for an image that is neither on this host nor in its registry, and `RolloutError` for one
    of an engine's makers, which is pulled, that does not contain the release that will be measured."""
    _TARGETS[spec.target].check_image(spec)


def prepare(release: Release, settings: Settings) -> Release:
    """The release with what its target needs to be made first: for `docker` the image, by its id, built or pulled.

    Raises `MissingToolError` without a Docker engine, and `RolloutError` if the image cannot be made.
    """
    return _TARGETS[release.target].prepare(release, settings)


@dataclass(frozen=True)
class _Target:
    """How services are run in one way; the functions above say what each of these does."""

    open: Callable[[ServiceFolder, Settings], AbstractContextManager[Target]]
    check: Callable[[], object] = lambda: None
    check_image: Callable[[DeploySpec], object] = lambda spec: None
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


def _check_image(spec: DeploySpec) -> None:
    from blocks.docker.docker_engine import DockerEngine
    from blocks.docker.makers_image import check_makers_image

    engine, image = get_engine(spec.engine), spec.rollout.image
    with DockerEngine.connect() as docker:
        if image is None:
            docker.check_base_image(spec.rollout.base_image)
        else:
            check_makers_image(docker, image, engine, spec.engine_version or engine.card.version)


def _with_image(release: Release, settings: Settings) -> Release:
    from blocks.docker.docker_engine import DockerEngine

    with DockerEngine.connect() as docker:
        return release.model_copy(update={"image": _make_image(release, settings, docker)})


def _image_of(release: Release, *, settings: Settings, docker: DockerEngine) -> str:
    """The release's image; made again if it was removed since, for example by a clean-up before a rollback."""
    if release.image is not None and docker.image_id(release.image) is not None:
        return release.image
    image = _make_image(release, settings, docker)
    if release.image is not None and release.spec.rollout.image is not None:
        check_same(release.spec.rollout.image, release.image, image)
    return image


def _make_image(release: Release, settings: Settings, docker: DockerEngine) -> str:
    from blocks.docker.makers_image import check_makers_image
    from blocks.packages.site_packages import install_packages

    if (makers := release.spec.rollout.image) is not None:
        return check_makers_image(docker, makers, get_engine(release.engine), release.engine_version)
    return make_image(release, settings, docker, install_packages)


_TARGETS = {
    TargetKind.PROCESS: _Target(_open_process),
    TargetKind.DOCKER: _Target(_open_docker, _check_docker, _check_image, _with_image),
}
