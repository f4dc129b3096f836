"""What an image that the makers of an engine publish must hold. Pure."""

from __future__ import annotations

from packaging.utils import canonicalize_version
from packaging.version import InvalidVersion, Version

from tasks.core.errors import RolloutError
from tasks.engines.base import Engine


def check_version(image: str, engine: Engine, wanted: str, found: str | None) -> None:
    """Raise `RolloutError` unless the image holds the release of the engine that is measured in the environment.

    `found` is the version of the engine's distribution in the image; None if there is none. Local parts of versions,
    such as `+cu129`, name builds of the same release.
    """
    if found is None:
        raise RolloutError(
            f"rollout.image: {image} does not contain {engine.card.title}",
            fix=f"use the makers' image, such as {_documented(engine, wanted)}",
        )
    if canonicalize_version(_public(found)) != canonicalize_version(_public(wanted)):
        raise RolloutError(
            f"rollout.image: {image} contains {engine.card.title} {found}, but {wanted} is measured",
            fix=f'set engine_version: "{_public(found)}", or use {_documented(engine, wanted)}',
        )


def check_same(image: str, wanted: str, found: str) -> None:
    """Raise `RolloutError` if an image's name no longer stands for the image of a release, given by their ids."""
    if wanted != found:
        raise RolloutError(
            f"{image} is another image now than the release was deployed with, and that one is gone",
            fix="deploy its spec again, with a digest (NAME@sha256:…) instead of a tag",
        )


def _documented(engine: Engine, version: str) -> str:
    makers = engine.card.image
    return makers.name_of(version) if makers else str(engine.kind)


def _public(version: str) -> str:
    try:
        return Version(version).public
    except InvalidVersion:
        return version
