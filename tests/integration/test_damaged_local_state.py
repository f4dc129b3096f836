"""What knows the local server and worker is damaged: they are found all the same, and no second pair starts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from local_place import LocalPlace, local_place, run_slipway
from uncovered import uncovered

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def place() -> Iterator[LocalPlace]:
    with uncovered(), local_place() as made:
        yield made


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
    assert json.loads(run_slipway(place.home, "ui", "--json").stdout)["server"] == place.server
    done = run_slipway(place.home, "up", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["server"] == place.server
    assert pair_of(place.home) == before
    assert json.loads((place.home / "local.json").read_text())["server"]["pid"] == before["server"][0]


def test_down_finds_the_pair_that_runs() -> None:
    with uncovered(), local_place() as place:
        missing(place.home / "local.json")
        done = run_slipway(place.home, "down", "--json")
        assert json.loads(done.stdout) == {"ended": ["worker", "server"]}
        assert pair_of(place.home) == {"server": [], "worker": []}
