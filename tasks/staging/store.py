"""The staged models of one host: shared between releases, removed by least recent use, never while in use.

Nothing in them is lost by that: each can be staged again from its source. The candidates that were made of a model go
with it: they can be made again of nothing else.
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
from tasks.core.files import PART, file_lock, remove_folder, sweep_doomed
from tasks.core.manifest import Manifest
from tasks.core.release import named_by_releases
from tasks.core.settings import Settings
from tasks.staging.apply import lock_of

FRESH_S = 3600.0
"""A model used so lately is in use: between two commands, as between two stages of one, nobody holds it."""

RunningBelow = Callable[[Path], Collection[int]]
"""Ids of the processes whose program or arguments lie in a folder."""


@dataclass(frozen=True)
class StagedModel:
    """One staged model, or an unfinished copy. `holder` says what needs it; nothing does where it is empty.

    `candidates` are the folders of the candidates that were made of it; `size_bytes` counts them.
    """

    folder: Path
    size_bytes: int
    used_at: float
    holder: str
    candidates: tuple[Path, ...] = ()


@contextlib.contextmanager
def in_use(folder: Path, settings: Settings) -> Iterator[None]:
    """Keep a staged model from being removed; several may do so at once. It was used last when the last one ends."""
    touch_used(folder, settings)
    with file_lock(_use_lock(folder, settings), wait=True, holder=str(folder), shared=True):
        try:
            yield
        finally:
            touch_used(folder, settings)


@contextlib.contextmanager
def at_rest(folder: Path, settings: Settings) -> Iterator[None]:
    """Keep a staged model from being written or removed. Raises `BusyError` while a run writes it.

    Where no lease can be written, in the home of another user, say, the folder is read as it is.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(in_use_by_path(folder, settings))
            lock = lock_of(folder, settings.leases)
            stack.enter_context(file_lock(lock, wait=False, holder=str(folder), shared=True))
        yield


@contextlib.contextmanager
def in_use_by_path(path: Path, settings: Settings) -> Iterator[None]:
    """The same for the staged model that a path lies in, or whose candidate does; of other paths nothing is kept."""
    folder = _owner_of(path, settings)
    with contextlib.nullcontext() if folder is None else in_use(folder, settings):
        yield


def touch_used(folder: Path, settings: Settings) -> None:
    """Note that the model is used now."""
    settings.leases.mkdir(parents=True, exist_ok=True)
    _use_lock(folder, settings).touch()


def list_models(settings: Settings, running_below: RunningBelow) -> tuple[StagedModel, ...]:
    """Everything below the models' folder, the least recently used first.

    Raises `RecordError` if a release cannot be read: what it needs is not known then.
    """
    named = named_by_releases(settings.services, "model_digest")
    folders = (path for path in settings.models.glob("*") if path.is_dir() and not path.name.endswith(PART))
    found = [_look(folder, settings, named, running_below) for folder in folders]
    return tuple(sorted(found, key=lambda model: (model.used_at, model.folder)))


def choose(models: Sequence[StagedModel], to_free_bytes: int) -> tuple[StagedModel, ...]:
    """The least recently used of those that nobody needs, until they hold that much."""
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
    """Before a model of that size is staged into `folder`: remove others, if the limit or the disk asks for it.

    Models in use stay, even where the limit is exceeded by them: it bounds a cache, and fails no deploy. Where all
    that is idle would not help the disk, nothing is removed for it, and the copy will say what does not fit.
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
    """Remove models until the rest is below the limit, or only such are left as are in use; those removed."""
    if not dry_run:
        _sweep(settings)
    models = list_models(settings, running_below)
    chosen = choose(models, sum(model.size_bytes for model in models) - limit_bytes)
    return chosen if dry_run else tuple(model for model in chosen if remove(model, settings))


def remove(model: StagedModel, settings: Settings) -> bool:
    """Remove it unless somebody has taken it by now; whether it is gone."""
    folder = model.folder
    try:
        with (
            file_lock(lock_of(folder, settings.leases), wait=False, holder=str(folder)),
            file_lock(_use_lock(folder, settings), wait=False, holder=str(folder)),
        ):
            if _used_at(folder, settings) > model.used_at:
                return False
            # Candidates first: nobody would find them without the model. The same content may be staged twice, from
            # two sources: whoever works with the other one works with these candidates, too.
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
    for lock in (lock_of(folder, settings.leases), _use_lock(folder, settings)):
        try:
            with file_lock(lock, wait=False, holder=str(folder)):
                pass
        except BusyError:
            return "a run works with it"
    return "a process runs with it" if any(map(running_below, places)) else ""


def _use_lock(folder: Path, settings: Settings) -> Path:
    """Its time is that of the last use."""
    return lock_of(folder, settings.leases).with_suffix(".used")


def _used_at(folder: Path, settings: Settings) -> float:
    lock = _use_lock(folder, settings)
    return (lock if lock.exists() else folder).stat().st_mtime


def _free_bytes(folder: Path) -> int:
    there = next(place for place in (folder, *folder.parents) if place.exists())
    return shutil.disk_usage(there).free
