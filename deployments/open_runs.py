"""Deploys of this host's command whose runs may still go on by Prefect's account: a killed one leaves its mark.

Only a server can end such a run, so the service's next deploy starts one, whatever the records say.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tasks.core.files import make_folder
from tasks.core.settings import Settings


@contextlib.contextmanager
def open_run(settings: Settings, name: str) -> Iterator[None]:
    """Mark this process's run of a service. One that ends, in whatever way, has ended the runs before it, or none."""
    folder = _folder(settings, name)
    make_folder(folder)
    before = list(folder.iterdir())
    own = folder / str(os.getpid())
    own.touch()
    try:
        yield
    except BaseException:
        own.unlink(missing_ok=True)
        raise
    for mark in (*before, own):
        mark.unlink(missing_ok=True)


def has_open_run(settings: Settings, name: str) -> bool:
    """Whether a run of the service goes on, or was killed."""
    folder = _folder(settings, name)
    return folder.is_dir() and any(folder.iterdir())


def _folder(settings: Settings, name: str) -> Path:
    return settings.prefect_home / "open-runs" / name
