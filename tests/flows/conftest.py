"""Flows called in this process report to a real Prefect API server, as those of a command do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from blocks.prefect.server import TemporaryServer
from deployments.prefect_api import PrefectApi


@pytest.fixture(scope="session", autouse=True)
def prefect_api(prefect_server: TemporaryServer) -> Iterator[None]:
    """The server that flows and clients of these tests use."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    api = PrefectApi(prefect_server.url, prefect_server)
    reached = {PREFECT_API_URL: api.url, PREFECT_API_AUTH_STRING: prefect_server.key}
    with temporary_settings(updates=reached), api.quiet_runs():
        yield
