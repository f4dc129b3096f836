"""Where services run: the implementation for each target of the spec."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tasks.core.errors import MissingToolError
from tasks.core.release import ServiceFolder
from tasks.core.settings import Settings
from tasks.core.spec import Target as TargetKind
from tasks.rollout.apply import Target


@contextlib.contextmanager
def open_target(kind: TargetKind, folder: ServiceFolder, settings: Settings) -> Iterator[Target]:
    """The service's target, until the block is left. Opening it starts nothing."""
    if kind is TargetKind.PROCESS:
        from blocks.supervisor import SupervisedService

        with SupervisedService(folder) as service:
            yield service
    else:
        raise MissingToolError(f"the target {kind} is not installed", fix="use target: process")
