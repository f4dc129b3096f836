"""Child processes end with who asked for them, whatever they started themselves."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from waiting import wait_until

from blocks.process import leashed, run

_TREE = """
import os, subprocess, sys, time
session = subprocess.Popen([sys.executable, "-c", sys.argv[2]], start_new_session=True)
grandchild = subprocess.Popen(
    [sys.executable, "-c", "import os, subprocess, sys; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]],"
     " start_new_session=True); print(p.pid, flush=True); os._exit(0)", sys.argv[2]], stdout=subprocess.PIPE)
open(sys.argv[1], "w").write(f"{session.pid} {grandchild.stdout.readline().decode()}")
exec(sys.argv[3])
"""
_SLEEP = "import time; time.sleep(600)"


def started(file: Path) -> list[int]:
    """What left the command's group: a child in a session of its own, and an orphaned grandchild in another."""
    wait_until(lambda: file.exists() and len(file.read_text().split()) == 2, "the tree has grown")
    return [int(pid) for pid in file.read_text().split()]


def gone(pids: list[int]) -> None:
    wait_until(lambda: not any(map(psutil.pid_exists, pids)), "all are gone")


def test_what_a_command_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    assert run([sys.executable, "-c", _TREE, file, _SLEEP, "sys.exit(7)"], timeout_s=30).code == 7
    gone(started(file))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_all_of_it_ends_when_who_asked_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    file = tmp_path / "pids"
    asker = "import sys; from blocks.process import run; run([sys.executable, '-c', *sys.argv[1:]], timeout_s=600)"
    with subprocess.Popen([sys.executable, "-c", asker, _TREE, file, _SLEEP, _SLEEP]) as process:
        processes = started(file)
        process.send_signal(number)
        process.wait()
    gone(processes)


def test_leaving_the_block_ends_it_too(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    command = [sys.executable, "-c", _TREE, str(file), _SLEEP, _SLEEP]
    with leashed(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        processes = started(file)
    assert child.returncode is not None
    gone(processes)
    assert not psutil.pid_exists(child.pid)
