"""Bring back what a service served last, by what is on this host alone."""

from __future__ import annotations

from datetime import UTC, datetime

from tasks.core.digests import short
from tasks.core.errors import NotFoundError, RecordError, RolloutError
from tasks.core.prefetch import Prefetch, no_prefetch
from tasks.core.release import Release, ServiceFolder, ServiceState
from tasks.core.spec import Target as TargetKind
from tasks.rollout.apply import OpenApi, Target, roll_out
from tasks.rollout.damage import set_damage_aside
from tasks.rollout.models import RolloutResult, Running


def release_to_start(folder: ServiceFolder, target: Target) -> tuple[ServiceState, Release]:
    """What the service served last, and where: as written down by it, or else by its target.

    Raises `NotFoundError` where neither can be read, `RolloutError` where the release's document cannot.
    """
    state = folder.last()
    found = (state.release if state else None) or _release_of(target.running() or target.written())
    if found is None:
        raise NotFoundError(
            f"{folder.name}: what it served last is not written down any more", fix="deploy its spec again"
        )
    try:
        release = folder.release(found)
    except RecordError:
        release = None
    if release is None:
        raise RolloutError(
            f"the document of {folder.name}'s release {short(found)} is gone or damaged",
            fix="deploy its spec again: slipway deploy SPEC.yaml",
        )
    if state is None:
        seen = target.running() or target.written()
        assert seen is not None  # the release is known from it
        state = ServiceState(
            name=folder.name, target=release.target, host=seen.host, port=seen.port, release=found,
            since=datetime.now(UTC),
        )  # fmt: skip
    return state, release


def start_service(
    folder: ServiceFolder, target: Target, open_api: OpenApi, prefetch: Prefetch = no_prefetch
) -> RolloutResult:
    """Have the service serve what it served last, at the same address. Nothing is done if it does already.

    It needs neither the model's source nor a registry or network. Raises what `release_to_start` and `roll_out` do.
    """
    set_damage_aside(folder)
    state, release = release_to_start(folder, target)
    return roll_out(release, folder, target, open_api, prefetch, last=state, bring_back=False)


def target_of(folder: ServiceFolder) -> TargetKind:
    """Where the service runs, by whatever of its documents can be read."""
    try:
        if (state := folder.last()) is not None:
            return state.target
    except RecordError:
        pass  # the folder itself tells it, too
    return TargetKind.DOCKER if (folder.root / "proxy").exists() else TargetKind.PROCESS


def _release_of(running: Running | None) -> str | None:
    return running.release if running else None
