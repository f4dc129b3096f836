"""What the tests with real servers share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from strays import processes_of
from waiting import wait_until

from blocks.sampler import stop_sampler
from blocks.supervisor import SupervisedService
from tasks.core.release import ServiceFolder


@pytest.fixture(scope="session")
def examples(repository: Path) -> Path:
    """The examples' folder."""
    return repository / "examples"


@pytest.fixture
def services(slipway_home: Path) -> Iterator[Callable[[str], ServiceFolder]]:
    """Folders of services by name. Whatever runs at the end of the test is stopped; nothing may be left."""

    def folder(name: str) -> ServiceFolder:
        return ServiceFolder(slipway_home / "services", name)

    yield folder
    for root in (slipway_home / "services").glob("*"):
        with SupervisedService(folder(root.name)) as service:
            service.stop(drain_s=0)
        stop_sampler(folder(root.name))
    try:
        wait_until(lambda: not processes_of(slipway_home), "no process is left behind", timeout_s=10)
    finally:
        for stray in processes_of(slipway_home):
            stray.kill()
