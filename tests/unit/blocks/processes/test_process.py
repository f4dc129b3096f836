"""Child processes end with who asked for them, whatever they started themselves."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from waiting import wait_until

from blocks.processes import process
from blocks.processes.process import guarded, run
from tasks.core.errors import CommandError

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
    asker = "import sys; from blocks.processes.process import run; run([sys.executable, '-c', *sys.argv[1:]], timeout_s=600)"
    with subprocess.Popen([sys.executable, "-c", asker, _TREE, file, _SLEEP, _SLEEP]) as asking:
        processes = started(file)
        asking.send_signal(number)
        asking.wait()
    gone(processes)


def test_leaving_the_block_ends_it_too(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    command = [sys.executable, "-c", _TREE, str(file), _SLEEP, _SLEEP]
    with guarded(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        processes = started(file)
    assert child.returncode is not None
    gone(processes)
    assert not psutil.pid_exists(child.pid)


@pytest.fixture
def at_most_1_mb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "MOST_BYTES", 1_000_000, raising=False)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_command_that_prints_without_end_is_ended(stream: str, at_most_1_mb: None) -> None:
    endless = f"import sys\nwhile True: sys.{stream}.write('x' * 4096)"
    with pytest.raises(CommandError, match=r"python.* printed more than 1 MB"):
        run([sys.executable, "-c", endless], timeout_s=60)


def test_one_that_printed_too_much_and_ended_is_told(at_most_1_mb: None) -> None:
    with pytest.raises(CommandError, match="printed more than 1 MB"):
        run([sys.executable, "-c", "print('x' * 1_000_000)"], timeout_s=60)


def test_what_a_command_may_print_is_kept_whole(at_most_1_mb: None) -> None:
    finished = run([sys.executable, "-c", "print('x' * 999_999)"], timeout_s=60)
    assert (finished.code, len(finished.stdout)) == (0, 1_000_000)
