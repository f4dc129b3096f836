"""The staged models of one host: shared between releases, removed by least recent use, never while in use.

Removing loses nothing: each can be staged again from its source. The candidates made from a model are removed
with it, because they can only be made from that model.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.core.digests import short
from tasks.core.errors import BusyError, ModelError
from tasks.core.files import PART, file_lock, is_held, remove_folder, sweep_doomed
from tasks.core.manifest import Manifest
from tasks.core.release import named_by_releases
from tasks.core.settings import Settings
from tasks.staging.apply import lock_of

FRESH_S = 3600.0
"""A model used this recently counts as in use: nothing holds it between two commands, or between two stages
of one."""

RunningBelow = Callable[[Path], Collection[int]]
"""Ids of the processes whose program or arguments are in a folder."""


@dataclass(frozen=True)
class StagedModel:
    """One staged model, or an unfinished copy. `holder` says what needs it; empty if nothing does.

    `candidates` are the folders of the candidates made from it; `size_bytes` includes them.
    """

    folder: Path
    size_bytes: int
    used_at: float
    holder: str
    candidates: tuple[Path, ...] = ()


@contextlib.contextmanager
def in_use(folder: Path, settings: Settings) -> Iterator[None]:
    """Keep a staged model from being removed; several runs may do so at once. When the last one ends, that is
    its last use."""
    touch_used(folder, settings)
    with file_lock(_use_lock(folder, settings), wait=True, holder=str(folder), shared=True):
        try:
            yield
        finally:
            touch_used(folder, settings)


@contextlib.contextmanager
def at_rest(folder: Path, settings: Settings) -> Iterator[None]:
    """Keep a staged model from being written or removed. Raises `BusyError` while a run writes it.

    If the lease cannot be written, for example in another user's home, the folder is read without it.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(in_use_by_path(folder, settings))
            lock = lock_of(folder, settings.leases)
            stack.enter_context(file_lock(lock, wait=False, holder=str(folder), shared=True))
        yield


@contextlib.contextmanager
def in_use_by_path(path: Path, settings: Settings) -> Iterator[None]:
    """The same for the staged model that contains a path, or whose candidate does; other paths are ignored."""
    folder = _owner_of(path, settings)
    with contextlib.nullcontext() if folder is None else in_use(folder, settings):
        yield


def touch_used(folder: Path, settings: Settings) -> None:
    """Note that the model is used now."""
    settings.leases.mkdir(parents=True, exist_ok=True)
    _use_lock(folder, settings).touch()


def list_models(settings: Settings, running_below: RunningBelow) -> tuple[StagedModel, ...]:
    """Everything below the models' folder, the least recently used first.

    Raises `RecordError` if a release cannot be read, because what it needs is then unknown.
    """
    named = named_by_releases(settings.services, "model_digest")
    folders = (path for path in settings.models.glob("*") if path.is_dir() and not path.name.endswith(PART))
    found = [_look(folder, settings, named, running_below) for folder in folders]
    return tuple(sorted(found, key=lambda model: (model.used_at, model.folder)))


def choose(models: Sequence[StagedModel], to_free_bytes: int) -> tuple[StagedModel, ...]:
    """The least recently used of those that nothing needs, until they add up to that much."""
    chosen: list[StagedModel] = []
    freed = 0
    for model in sorted(models, key=lambda model: model.used_at):
        if freed >= to_free_bytes:
            break
        if not model.holder:
            chosen.append(model)
            freed += model.size_bytes
    return tuple(chosen)


def make_room(
    settings: Settings, running_below: RunningBelow, folder: Path, *, size_bytes: int, missing_bytes: int
) -> tuple[StagedModel, ...]:
    """Before a model of that size is staged into `folder`, remove others if the limit or the disk requires it.

    Models in use stay, even if they exceed the limit: it bounds a cache, and does not fail a deploy. If removing all
    idle models would not free enough space on the disk, none is removed, and the copy will say what does not fit.
    """
    _sweep(settings)
    lacking = missing_bytes - _free_bytes(settings.models)
    limit = settings.models_limit_bytes
    if lacking <= 0 and limit is None:
        return ()
    others = [model for model in list_models(settings, running_below) if model.folder != folder]
    idle = sum(model.size_bytes for model in others if not model.holder)
    over = sum(model.size_bytes for model in others) + size_bytes - limit if limit is not None else 0
    chosen = choose(others, max(over, lacking if lacking <= idle else 0))
    return tuple(model for model in chosen if remove(model, settings))


def collect(
    settings: Settings, running_below: RunningBelow, *, limit_bytes: int, dry_run: bool = False
) -> tuple[StagedModel, ...]:
    """Remove models until the rest is below the limit, or only those in use are left; the removed ones."""
    if not dry_run:
        _sweep(settings)
    models = list_models(settings, running_below)
    chosen = choose(models, sum(model.size_bytes for model in models) - limit_bytes)
    return chosen if dry_run else tuple(model for model in chosen if remove(model, settings))


def remove(model: StagedModel, settings: Settings) -> bool:
    """Remove it unless a run uses it by now; whether it is gone."""
    folder = model.folder
    try:
        with (
            file_lock(lock_of(folder, settings.leases), wait=False, holder=str(folder)),
            file_lock(_use_lock(folder, settings), wait=False, holder=str(folder)),
        ):
            if _used_at(folder, settings) > model.used_at:
                return False
            # Candidates first: without the model they would never be found. The same content may be staged
            # twice, from two sources: a run that uses the other copy also uses these candidates.
            for path in () if _is_staged_elsewhere(folder, settings) else model.candidates:
                remove_folder(path)
            remove_folder(folder)
    except (BusyError, FileNotFoundError):
        return False
    return True


def _look(
    folder: Path, settings: Settings, named: dict[str, str], running_below: RunningBelow
) -> StagedModel:
    used_at, digest = _used_at(folder, settings), _digest_of(folder)
    made = sorted(settings.candidates.glob(f"{short(digest)}-*")) if digest else []
    candidates = tuple(path for path in made if not path.name.endswith(PART))
    places = (folder, *candidates)
    holder = _holder(places, used_at, settings, named.get(digest), running_below)
    return StagedModel(folder, sum(map(_size_of, places)), used_at, holder, candidates)


def _digest_of(folder: Path) -> str:
    try:
        return Manifest.read(folder).digest
    except (OSError, ModelError):
        return ""


def _is_staged_elsewhere(folder: Path, settings: Settings) -> bool:
    digest = _digest_of(folder)
    return any(_digest_of(other) == digest for other in settings.models.glob("*") if other != folder)


def _owner_of(path: Path, settings: Settings) -> Path | None:
    path, models, candidates = path.resolve(), settings.models.resolve(), settings.candidates.resolve()
    if models in path.parents:
        return settings.models / path.relative_to(models).parts[0]
    if candidates in path.parents:
        made_of = path.relative_to(candidates).parts[0].partition("-")[0]
        found = (folder for folder in settings.models.glob("*") if short(_digest_of(folder)) == made_of)
        return next(found, None)
    return None


def _sweep(settings: Settings) -> None:
    sweep_doomed(settings.models)
    sweep_doomed(settings.candidates)


def _size_of(folder: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _holder(
    places: tuple[Path, ...],
    used_at: float,
    settings: Settings,
    service: str | None,
    running_below: RunningBelow,
) -> str:
    folder = places[0]
    if service:
        return f"a release of {service} names it"
    if abs(time.time() - used_at) < FRESH_S:  # the clock may have been set back since
        return "it was used within the last hour"
    if any(map(is_held, (lock_of(folder, settings.leases), _use_lock(folder, settings)))):
        return "a run uses it"
    return "a process uses it" if any(map(running_below, places)) else ""


def _use_lock(folder: Path, settings: Settings) -> Path:
    """A file whose modification time is the time of the last use."""
    return lock_of(folder, settings.leases).with_suffix(".used")


def _used_at(folder: Path, settings: Settings) -> float:
    lock = _use_lock(folder, settings)
    return (lock if lock.exists() else folder).stat().st_mtime


def _free_bytes(folder: Path) -> int:
    there = next(place for place in (folder, *folder.parents) if place.exists())
    return shutil.disk_usage(there).free
