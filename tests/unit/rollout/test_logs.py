from __future__ import annotations

import os
from pathlib import Path

from tasks.rollout.daemon.logs import KEPT_LOGS, BoundedLog, engine_log_path, sweep_logs


def test_a_log_keeps_its_end_within_its_bound(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "logs" / "engine.log", max_bytes=1000)
    for number in range(500):
        log.write(b"line %d\n" % number)
    log.close()
    files = sorted((tmp_path / "logs").iterdir())
    assert [file.name for file in files] == ["engine.log", "engine.log.1"]
    assert all(file.stat().st_size <= 1000 for file in files)
    assert files[0].read_bytes().endswith(b"line 499\n")


def test_a_log_goes_on_where_it_was(tmp_path: Path) -> None:
    for word in ("one", "two"):
        log = BoundedLog(tmp_path / "engine.log", max_bytes=100)
        log.say(word)
        log.close()
    lines = (tmp_path / "engine.log").read_text().splitlines()
    assert [line.split(" slipway: ")[1] for line in lines] == ["one", "two"]


def test_a_full_disk_loses_lines_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "engine.log").symlink_to("/dev/full")
    log = BoundedLog(tmp_path / "engine.log")
    log.say("lost")
    log.close()


def test_logs_of_releases_long_gone_are_removed(tmp_path: Path) -> None:
    for number in range(2 * KEPT_LOGS + 3):
        path = tmp_path / f"engine-{number:012d}.log"
        path.touch()
        os.utime(path, (number, number))
    (tmp_path / "supervisor.log").touch()
    sweep_logs(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"engine-{number:012d}.log" for number in range(3, 2 * KEPT_LOGS + 3)] + [
        "supervisor.log"
    ]


def test_a_log_is_named_after_its_release(tmp_path: Path) -> None:
    assert engine_log_path(tmp_path, "sha256:" + "ab" * 32) == tmp_path / "engine-abababababab.log"


def test_a_log_that_cannot_be_turned_over_goes_on_later(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "engine.log", max_bytes=10)
    log.write(b"123456789\n")
    (tmp_path / "engine.log.1").mkdir()  # what the log would be renamed to: the turn fails
    log.write(b"lost\n")
    (tmp_path / "engine.log.1").rmdir()
    log.write(b"kept\n")
    log.close()
    assert (tmp_path / "engine.log").read_bytes() == b"kept\n"


def test_a_closed_log_takes_no_more(tmp_path: Path) -> None:
    """A stray child may hold a retired engine's output open: what it still prints has nowhere to go."""
    log = BoundedLog(tmp_path / "engine.log")
    log.close()
    log.write(b"too late\n")
    assert (tmp_path / "engine.log").read_bytes() == b""
