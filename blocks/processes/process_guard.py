"""Run a command that must not outlive the process that started it. Standard library only, run as a script.

`python process_guard.py COMMAND …`: standard input is a pipe whose other end the starting process holds. When
that process ends, even by `kill -9`, the pipe closes, and the command's whole process group is killed, then every
process that had left the group: orphans become the guard's own children (fio's jobs start their own sessions). A
parent-death signal (`prctl`) from the starting process would not work, because it follows the thread that forked, and
tasks run in short-lived threads. It works here, where the main thread forks: the command also dies when the guard
itself is killed.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
ROUNDS = 200
"""Checks for processes that are left, milliseconds apart: each generation of orphans appears when its parents
are dead."""


def main() -> int:
    child = None
    early: list[int] = []

    def on_signal(number: int, _frame: object) -> None:
        if child is None:
            early.append(number)
        else:
            signal_group(child.pid, number)

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGUSR1, on_signal)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    handed_down = [int(path.name) for path in Path("/proc/self/fd").iterdir() if int(path.name) > 2]
    try:
        child = subprocess.Popen(
            sys.argv[1:],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            close_fds=False,  # sockets that the asking process handed down on purpose; all others close by themselves
            preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
        )
    except OSError as error:
        print(f"cannot run {sys.argv[1]}: {error.strerror}", file=sys.stderr)
        return 127
    # Only the command uses these: the guard must not keep a port open that the command has closed.
    for handle in handed_down:
        with contextlib.suppress(OSError):
            os.close(handle)
    for number in early:
        signal_group(child.pid, number)
    threading.Thread(target=watch, args=(child,), daemon=True).start()
    code = child.wait()
    end(child.pid)  # anything that the command left behind
    return code if code >= 0 else 128 - code


def watch(child: "subprocess.Popen[bytes]") -> None:
    """Wait for the other end to close, then end the group."""
    while os.read(0, 1024):
        pass
    end(child.pid)


def end(command: int) -> None:
    """Kill the command's group, then everything that it ever started; the command itself is waited for elsewhere."""
    signal_group(command, signal.SIGKILL)
    for _ in range(ROUNDS):
        orphans = children() - {command}
        if not orphans:
            return
        for orphan in orphans:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(orphan, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(orphan, os.WNOHANG)
        time.sleep(0.005)


def children() -> set[int]:
    """Child processes, including adopted orphans."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


def signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main())
