"""Folders of the environment stage: unfinished ones, those in use, and those to remove."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tasks.core.digests import digest_of, short
from tasks.core.errors import BusyError
from tasks.core.files import PART, discard, file_lock
from tasks.core.settings import Settings


def beside(folder: Path, kind: str) -> Path:
    """The unfinished folder of that kind next to `folder`."""
    return folder.with_name(f"{folder.name}{kind}{PART}")


@contextlib.contextmanager
def held(folder: Path, settings: Settings) -> Iterator[None]:
    """Let only this run change that environment, and the unfinished folders next to it."""
    own = folder.parent.resolve() == settings.environments.resolve()
    name = folder.name if own else short(digest_of(str(folder)))
    with file_lock(settings.leases / f"environment-{name}", wait=True, holder=f"the environment {folder}"):
        yield


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """An empty folder that is removed afterwards."""
    discard(folder)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        discard(folder)


MARKER = "slipway-environment.json"
"""The file that is written into an environment last."""

USED = "slipway-used"
"""An empty file in an environment; its modification time is the time of the last use."""


def touch_used(folder: Path) -> None:
    """Note that the environment is used now."""
    (folder / USED).touch()


def used_at(folder: Path) -> float:
    """When the environment was last used, or else built or begun: seconds since the epoch."""
    latest = next(path for path in (folder / USED, folder / MARKER, folder) if path.exists())
    return latest.stat().st_mtime


def sweep_leftovers(folder: Path, leases: Path) -> list[Path]:
    """Remove unfinished environments that killed runs left behind; those being built now stay."""
    removed = []
    for part in sorted(folder.glob(f"*{PART}")):
        name = part.name.partition(".")[0]
        with (
            contextlib.suppress(BusyError),
            file_lock(leases / f"environment-{name}", wait=False, holder=f"the environment {name}"),
        ):
            discard(part)
            removed.append(part)
    return removed
