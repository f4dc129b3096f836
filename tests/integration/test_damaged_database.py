"""A real server whose database was damaged while it did not run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from blocks.prefect.database import database_file
from blocks.prefect.server import temporary_server
from tasks.core.settings import Settings

pytestmark = pytest.mark.server


HARMS: dict[str, Callable[[Path], object]] = {
    "half of it": lambda file: os.truncate(file, file.stat().st_size // 2),
    "nothing": lambda file: os.truncate(file, 0),
}


def test_the_next_server_starts_with_a_new_one(slipway_home: Path) -> None:
    settings = Settings.load()
    for harm in (*HARMS.values(), lambda _: None):
        with temporary_server(settings) as server:
            server.wait()
            user, _, secret = server.key.partition(":")
            asked = f"{server.url}/flows/filter"
            assert httpx.post(asked, json={}, auth=(user, secret), trust_env=False).json() == []
        harm(database_file(settings))
