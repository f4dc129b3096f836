"""An image that the makers of an engine publish: fetched, and asked which release of the engine it holds."""

from __future__ import annotations

import requests
from docker.errors import APIError, ContainerError, DockerException

from blocks.docker.docker_engine import DockerEngine
from tasks.core.errors import NetworkError, RolloutError
from tasks.core.progress import say
from tasks.core.verdicts import StageName
from tasks.engines.base import Engine
from tasks.rollout.container.makers import check_version

_NO_PROGRAM = ("executable file not found", "no such file or directory")
"""What Docker says of a program that an image lacks."""

_SAY_VERSION = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"
_NOBODY = "65534:65534"


def makers_image_id(docker: DockerEngine, name: str) -> str:
    """`sha256:…` of an image, pulled if it is not on this host. Raises `NetworkError` if it cannot be."""
    if found := docker.image_id(name):
        return found
    say(StageName.ROLLOUT, f"pulling the image {name}")
    # Without a tag, the SDK would pull all of them.
    exact = "@" in name or ":" in name.rpartition("/")[2]
    try:
        docker.client.images.pull(name if exact else f"{name}:latest")
    except (DockerException, requests.RequestException) as error:
        raise NetworkError(
            f"the image {name} is not on this host and cannot be pulled",
            fix="check its name, log in to its registry (docker login), or bring it here (docker load)",
            detail=str(getattr(error, "explanation", None) or error),
        ) from error
    return docker.image_id(name) or name


def check_makers_image(docker: DockerEngine, name: str, engine: Engine, wanted: str) -> str:
    """The image's id. Raises `NetworkError`, or `RolloutError` unless it holds the release `wanted` of the engine."""
    image = makers_image_id(docker, name)
    makers = engine.card.image
    assert makers is not None  # the deploy is refused before, for an engine without one
    check_version(name, engine, wanted, _version_in(docker, image, makers.python, engine.card.package))
    return image


def _version_in(docker: DockerEngine, image: str, python: str, package: str) -> str | None:
    """The version of a distribution in an image, as its own Python has it; None without the one or the other."""
    try:
        said: bytes = docker.client.containers.run(
            image,
            ["-c", _SAY_VERSION, package],
            entrypoint=[python],
            user=_NOBODY,
            network_mode="none",
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            use_config_proxy=False,
            remove=True,
        )
    except ContainerError:
        return None
    except (DockerException, requests.RequestException) as error:
        words = str(getattr(error, "explanation", None) or error)
        if isinstance(error, APIError) and any(sign in words for sign in _NO_PROGRAM):
            return None
        raise RolloutError(f"the image {image} could not be started", detail=words) from error
    lines = said.decode(errors="replace").split()
    return lines[-1] if lines else None
