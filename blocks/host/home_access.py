"""Whether this user may write where a deploy writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tasks.core.errors import WrongUseError
from tasks.core.settings import Settings

_FOLDERS = (
    "locks",
    "environments",
    "models",
    "candidates",
    "services",
    "leases",
    "tables",
    "logs",
    "prefect",
)


def check_home(settings: Settings, name: str) -> None:
    """Raise `WrongUseError` for a folder or lock that the service's deploy may not write to. Changes nothing."""
    for folder in _folders(settings, name):
        here = next(one for one in (folder, *folder.parents) if one.exists())
        if not here.is_dir():
            raise WrongUseError(
                f"{here} is not a folder", fix="move it, or set SLIPWAY_HOME to another folder"
            )
        if not may(here, os.W_OK | os.X_OK):
            raise _not_writable(here)
    lease = settings.service_lease(name)
    if lease.exists() and not may(lease, os.R_OK | os.W_OK):
        raise _not_writable(lease)


def may(path: Path, mode: int) -> bool:
    """Whether this user may access `path`; `mode` is that of `os.access`. A disk mounted read-only counts too."""
    return os.access(path, mode, effective_ids=True)


def _folders(settings: Settings, name: str) -> Iterator[Path]:
    yield settings.home
    yield from (settings.home / folder for folder in _FOLDERS)
    yield settings.services / name
    if "://" not in settings.records:
        yield Path(settings.records).absolute()


def _not_writable(path: Path) -> WrongUseError:
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return WrongUseError(
            f"{path} is on a disk that is mounted read-only",
            fix="mount it for writing, or set SLIPWAY_HOME to a folder on another disk",
        )
    return WrongUseError(
        f"user {os.geteuid()} cannot write to {path}, which belongs to user {path.stat().st_uid}",
        fix="run as that user, or set SLIPWAY_HOME to a folder of your own",
    )
