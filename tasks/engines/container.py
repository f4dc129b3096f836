"""The container that runs an engine's stock image: what to mount, to publish and to start. Pure."""

from __future__ import annotations

from pathlib import PurePosixPath

from pydantic import Field

from tasks.core.errors import SpecError
from tasks.core.serving import ServingConfig
from tasks.engines.base import Engine
from tasks.engines.card import Part

MODELS = "/model"
CONFIG = "/config"
"""Folder of the engine's manifests inside; Triton's model repository is looked for at its root."""


class StockContainer(Part):
    """One container of a stock image, by digest. `mounts` are paths inside by path outside, all read-only;
    `writable` are folders of its own."""

    image: str
    argv: tuple[str, ...]
    env: dict[str, str]
    port: int
    gpus: int
    shm_bytes: int
    mounts: dict[str, str]
    writable: tuple[str, ...]
    files: dict[str, str] = Field({}, description="Manifests by path relative to the folder of the service.")


def stock_container(engine: Engine, image: str, model: str, config: ServingConfig) -> StockContainer:
    """How to run `image` (`REPOSITORY@sha256:…`) on the model at `model` of the host.

    Raises `SpecError` for an image of another engine, and `NotFoundError` for an engine without one.
    """
    inside = f"{MODELS}/{PurePosixPath(model).name}"
    command = engine.container_command(inside, config)
    known = engine.card.image
    assert known is not None  # else there is no such command
    repository = image.partition("@")[0]
    # A mirror keeps the last parts of the name.
    if not f"/{repository}".endswith(f"/{known.repository.rpartition('/')[2]}"):
        raise SpecError(
            f"rollout.image: {repository} is no image of {engine.kind}",
            fix=f"give the digest of {known.repository}:{known.documented_tag}",
        )
    files = engine.files(inside, config)
    folders = {path.partition("/")[0]: f"/{path.partition('/')[0]}" for path in files if "/" in path}
    alone = {path: f"{CONFIG}/{path}" for path in files if "/" not in path}
    return StockContainer(
        image=image,
        argv=command.at("0.0.0.0", known.port),
        env=command.env_at("0.0.0.0", known.port),
        port=known.port,
        gpus=config.gpus,
        shm_bytes=known.shm_bytes,
        mounts={**({} if _takes_blobs(engine) else {model: inside}), **folders, **alone},
        writable=known.writable,
        files=files,
    )


def _takes_blobs(engine: Engine) -> bool:
    """Whether the model comes by HTTP after the start."""
    return "ollama-blobs" in engine.card.layouts
