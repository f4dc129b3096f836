"""Bring back what a service served last, by what is on this host alone."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime
from pathlib import Path

from tasks.core.digests import short
from tasks.core.errors import NotFoundError, RecordError, RolloutError
from tasks.core.prefetch import Prefetch, no_prefetch
from tasks.core.release import Release, ServiceFolder, ServiceState
from tasks.core.spec import Target as TargetKind
from tasks.rollout.apply import OpenApi, Target, roll_out
from tasks.rollout.damage import set_damage_aside
from tasks.rollout.models import RolloutResult


def release_to_start(folder: ServiceFolder, target: Target) -> tuple[ServiceState, Release]:
    """What the service served last, and where. What its target says came after what is written down.

    Raises `NotFoundError` where neither is known, `RolloutError` where the release's document cannot be read.
    """
    state, seen = folder.last(), target.running() or target.written()
    found = seen.release if seen else state.release if state else None
    if found is None:
        raise NotFoundError(
            f"what {folder.name} served last is not written down any more", fix="deploy its spec again"
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


def should_run(services: Path) -> list[ServiceFolder]:
    """The services that were brought into service and not stopped since, by name."""
    return [
        ServiceFolder(services, name)
        for name in sorted(path.parent.name for path in services.glob("*/current.json"))
    ]


def target_of(folder: ServiceFolder) -> TargetKind:
    """Where the service runs or ran, by whatever of its documents can be read. Changes nothing."""
    documents = [folder.state_file, folder.last_file]
    with contextlib.suppress(OSError):
        documents += sorted(folder.root.glob("releases/*.json"), key=lambda path: -path.lstat().st_mtime)
    for document in documents:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return TargetKind(json.loads(document.read_bytes())["target"])
    return TargetKind.DOCKER if (folder.root / "proxy").exists() else TargetKind.PROCESS
