"""Start the release that a service served last, using only what is on this host."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, runtime_checkable

from tasks.core.digests import short
from tasks.core.errors import NotFoundError, RecordError, RolloutError
from tasks.core.files import write_atomically
from tasks.core.prefetch import Prefetch, no_prefetch
from tasks.core.release import Release, ServiceFolder, ServiceState
from tasks.core.spec_kinds import Target as TargetKind
from tasks.rollout.apply import roll_out
from tasks.rollout.damage import set_damage_aside
from tasks.rollout.door import ReadKeys, no_secrets
from tasks.rollout.models import RolloutResult
from tasks.rollout.recovery.models import Condition, Past, Progress, Sight
from tasks.rollout.target import OpenApi, Target


def release_to_start(folder: ServiceFolder, target: Target) -> tuple[ServiceState, Release]:
    """What the service served last, and where. What its target says came after what is written down.

    Raises `NotFoundError` if neither is known, `RolloutError` if the release's document cannot be read.
    """
    state, seen = folder.last(), target.running() or target.written()
    found = seen.release if seen else state.release if state else None
    if found is None:
        raise NotFoundError(f"what {folder.name} served last is not known", fix="deploy its spec again")
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
    folder: ServiceFolder,
    target: Target,
    open_api: OpenApi,
    prefetch: Prefetch = no_prefetch,
    read_keys: ReadKeys = no_secrets,
) -> RolloutResult:
    """Have the service serve what it served last, at the same address. Nothing is done if it does already.

    An engine that runs has its gate's `start_timeout_s` to answer, before another one is started in its place.

    The door gets the keys that the release's file has now, or had when it was read last.
    It needs neither the model's source nor a registry or network. Raises what `release_to_start` and `roll_out` do.
    """
    set_damage_aside(folder)
    state, release = release_to_start(folder, target)
    return roll_out(
        release, folder, target, open_api, prefetch,
        last=state, bring_back=False, patient=True, read_keys=read_keys, reopen=False,
    )  # fmt: skip


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
        with contextlib.suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
            return TargetKind(json.loads(document.read_bytes())["target"])
    containers = [*folder.root.glob("proxy/current"), *folder.root.glob("proxy/*/route.json")]
    return TargetKind.DOCKER if containers else TargetKind.PROCESS


@runtime_checkable
class Unwatched(Protocol):
    """A target without a supervisor: the caller has to notice an engine that hangs."""

    def progress(self, is_silent: Callable[[str], bool]) -> Progress | None:
        """How far the engine that serves has come; None if none runs. `is_silent` asks `/health` of a base URL."""

    def restart(self) -> None:
        """End the engine that serves, at once, and start it again at the same address."""


def look_at(target: Target, is_silent: Callable[[str], bool]) -> Sight:
    """The service's condition now. An engine that its supervisor is about to start again counts as up."""
    running = target.running()
    if running is None:
        return Sight(condition=Condition.DOWN)
    if not isinstance(target, Unwatched):
        return Sight(condition=Condition.UP)
    if not running.up:
        return Sight(condition=Condition.LAME)
    return Sight(condition=Condition.UP, progress=target.progress(is_silent))


def read_past(folder: ServiceFolder) -> Past:
    """What the looks before left; nothing if that cannot be read."""
    try:
        return Past.model_validate_json(_past_file(folder).read_bytes())
    except (OSError, ValueError):
        return Past()


def write_past(folder: ServiceFolder, past: Past) -> None:
    """Keep it for the next look, if there is anything to keep."""
    if past != Past():
        write_atomically(_past_file(folder), past.model_dump_json())
    else:
        _past_file(folder).unlink(missing_ok=True)


def _past_file(folder: ServiceFolder) -> Path:
    return folder.root / "recovery.json"
