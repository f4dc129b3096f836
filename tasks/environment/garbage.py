"""Remove environments that are no longer needed. Those that a release names stay, whatever their age."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path

from tasks.core.errors import BusyError
from tasks.core.files import PART, file_lock, remove_folder, sweep_doomed
from tasks.core.frozen import Frozen
from tasks.core.leases import hold_service
from tasks.core.release import named_by_releases
from tasks.core.settings import Settings
from tasks.environment.files import sweep_leftovers, used_at

RunningBelow = Callable[[Path], Collection[int]]
"""Ids of the processes that run from a folder."""


class Removed(Frozen):
    """One environment that was removed, or would be, and why it was not needed."""

    path: Path
    size_bytes: int
    unused_s: float
    reason: str


def collect(
    settings: Settings, running_below: RunningBelow, *, keep_s: float, dry_run: bool = False
) -> tuple[Removed, ...]:
    """Remove environments that no release names, no process runs from, no run holds, and that were not used
    for `keep_s`.

    Environments that killed runs left half built or half removed go too.

    Raises `RecordError` if a release cannot be read, because what it names is then unknown, and `BusyError` while a
    service is being deployed, because its environment has no release yet. Nothing is removed then.
    """
    with contextlib.ExitStack() as resting:
        any_service = settings.service_lease("")
        for lease in sorted(any_service.parent.glob(f"{any_service.name}*")):
            name = lease.name.removeprefix(any_service.name)
            resting.enter_context(hold_service(settings, name))
        return _collect(settings, running_below, keep_s, dry_run=dry_run)


def _collect(
    settings: Settings, running_below: RunningBelow, keep_s: float, *, dry_run: bool
) -> tuple[Removed, ...]:
    # Releases of an older Slipway may spell the home differently.
    named = {os.path.realpath(path) for path in named_by_releases(settings.services, "environment_path")}
    if not dry_run:
        sweep_doomed(settings.environments)
        sweep_leftovers(settings.environments, settings.leases)
    removed = []
    for folder in sorted(settings.environments.glob("*")):
        if folder.name.endswith(PART) or not folder.is_dir() or os.path.realpath(folder) in named:
            continue
        unused_s = abs(time.time() - used_at(folder))  # the clock may have been set back since
        if unused_s < keep_s or running_below(folder):
            continue
        lease = settings.leases / f"environment-{folder.name}"
        try:
            with file_lock(lease, wait=False, holder=f"the environment {folder.name}"):
                if abs(time.time() - used_at(folder)) < keep_s:  # a run has used it since
                    continue
                size = sum(path.lstat().st_size for path in folder.rglob("*"))
                if not dry_run:
                    remove_folder(folder)
        except BusyError:
            continue
        reason = f"no release names it, and it was not used for {unused_s / 86_400:.1f} days"
        removed.append(Removed(path=folder, size_bytes=size, unused_s=unused_s, reason=reason))
    return tuple(removed)
