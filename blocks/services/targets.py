"""Where services run: the implementation for each target of the spec."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from blocks.processes.ports import check_port_free, free_port
from tasks.core.release import Release, ServiceFolder
from tasks.core.settings import Settings
from tasks.core.spec import DeploySpec
from tasks.core.spec import Target as TargetKind
from tasks.rollout.container.apply import ContainerService, Host
from tasks.rollout.container.image import make_image
from tasks.rollout.target import Target

if TYPE_CHECKING:
    from blocks.docker.docker_engine import DockerEngine


@contextlib.contextmanager
def open_target(kind: TargetKind, folder: ServiceFolder, settings: Settings) -> Iterator[Target]:
    """The service's target, until the block is left. Opening it starts nothing."""
    if kind is TargetKind.PROCESS:
        from blocks.services.supervisor import SupervisedService

        with SupervisedService(folder) as service:
            yield service
    else:
        from blocks.docker.docker_engine import DockerEngine
        from blocks.services.haproxy import HAProxy

        with DockerEngine.connect() as docker:
            host = Host(open_proxy=HAProxy, free_port=free_port, check_port_free=check_port_free)
            image_of = partial(_image_of, settings=settings, docker=docker)
            yield ContainerService(folder, docker, host, image_of)


def check_target(kind: TargetKind) -> None:
    """Raise `MissingToolError` if services of this kind cannot run on this host."""
    from blocks.services.haproxy import find_haproxy

    find_haproxy(Settings.load())
    if kind is TargetKind.DOCKER:
        from blocks.docker.config import DockerConfig
        from blocks.docker.docker_engine import DockerEngine

        DockerConfig.read().check_helpers()
        with DockerEngine.connect():
            pass


def check_base_image(spec: DeploySpec) -> None:
    """Raise `NetworkError` for a base image that is neither on this host nor in its registry; of target docker."""
    if spec.target is TargetKind.DOCKER:
        from blocks.docker.docker_engine import DockerEngine

        with DockerEngine.connect() as docker:
            docker.check_base_image(spec.rollout.base_image)


def prepare(release: Release, settings: Settings) -> Release:
    """The release with what its target needs to be made first: for `docker` the image, by its id.

    Raises `MissingToolError` without a Docker engine, and `RolloutError` where the image cannot be made.
    """
    if release.target is not TargetKind.DOCKER:
        return release
    from blocks.docker.docker_engine import DockerEngine
    from blocks.packages.site_packages import install_packages

    with DockerEngine.connect() as docker:
        image = make_image(release, settings, docker, install_packages)
    return release.model_copy(update={"image": image})


def _image_of(release: Release, *, settings: Settings, docker: DockerEngine) -> str:
    """The release's image; made anew where it was removed since, as by a clean-up before a rollback."""
    if release.image is not None and docker.image_id(release.image) is not None:
        return release.image
    from blocks.packages.site_packages import install_packages

    return make_image(release, settings, docker, install_packages)
