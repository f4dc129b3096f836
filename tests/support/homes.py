"""Homes of Slipway, for a test or for all of a file, and the services in them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from strays import processes_of
from waiting import wait_until

from blocks.services.sampler import stop_sampler
from blocks.services.supervisor import SupervisedService
from tasks.core.release import ServiceFolder


@contextlib.contextmanager
def home_at(home: Path) -> Iterator[Path]:
    """`SLIPWAY_HOME` is there, and nothing else is set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIPWAY_HOME", str(home))
        for name in ("SLIPWAY_RECORDS", "SLIPWAY_REGISTRY", "SLIPWAY_S3_ENDPOINT"):
            patch.delenv(name, raising=False)
        yield home


@contextlib.contextmanager
def services_of(home: Path) -> Iterator[Callable[[str], ServiceFolder]]:
    """Folders of services by name. Whatever runs at the end is stopped; nothing may be left."""

    def folder(name: str) -> ServiceFolder:
        return ServiceFolder(home / "services", name)

    yield folder
    for root in (home / "services").glob("*"):
        with SupervisedService(folder(root.name)) as service:
            service.stop(drain_s=0)
        stop_sampler(folder(root.name))
    try:
        wait_until(lambda: not processes_of(home), "no process is left behind", timeout_s=10)
    finally:
        for stray in processes_of(home):
            stray.kill()
