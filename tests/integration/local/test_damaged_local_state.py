"""What knows the local server and worker is damaged: they are found all the same, and no second pair starts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from local_place import LocalPlace

pytestmark = pytest.mark.server


def pair_of(home: Path) -> dict[str, list[int]]:
    """Ids of the servers and workers that run for that home."""
    found: dict[str, list[int]] = {"server": [], "worker": []}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("SLIPWAY_HOME") != str(home):
                continue
            command = process.cmdline()
            if "blocks.prefect.local_api" in command:
                found["server"].append(process.pid)
            elif "worker" in command and "slipway-local" in command:
                found["worker"].append(process.pid)
    return found


def empty(file: Path) -> None:
    file.write_bytes(b"")


def half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:40])


def garbage(file: Path) -> None:
    file.write_bytes(b"\xff\x00{" * 100)


def missing(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("damage", [empty, half, garbage, missing])
def test_up_finds_the_pair_that_runs(place: LocalPlace, damage: Callable[[Path], None]) -> None:
    before = pair_of(place.home)
    assert [len(pids) for pids in before.values()] == [1, 1]
    damage(place.home / "local.json")
    assert place.json("ui")["server"] == place.server
    assert place.json("up")["server"] == place.server
    assert pair_of(place.home) == before
    assert json.loads((place.home / "local.json").read_text())["server"]["pid"] == before["server"][0]


def test_down_finds_the_pair_that_runs(place: LocalPlace) -> None:
    missing(place.home / "local.json")
    assert place.json("down") == {"ended": ["worker", "server"]}
    assert pair_of(place.home) == {"server": [], "worker": []}
    assert place.json("up", "--port", place.port) == place.up  # for the tests that follow
