"""What the tests with real servers share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from blocks.prefect_server import temporary_server
from tasks.core.settings import Settings


@pytest.fixture(scope="session")
def prefect_api_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect API for the commands of many tests, so that each does not start its own."""
    home = tmp_path_factory.mktemp("prefect")
    settings = Settings(home=home, records=str(home), registry=str(home), s3_endpoint=None)
    with temporary_server(settings) as server:
        server.wait()
        yield server.url


@pytest.fixture(scope="session")
def examples(repository: Path) -> Path:
    """The examples' folder."""
    return repository / "examples"
