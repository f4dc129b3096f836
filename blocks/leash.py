"""Run a command that must not outlive the process that asked for it. Standard library only, run as a script.

`python leash.py COMMAND …`: standard input is a pipe whose other end the asking process holds. When that
process ends, even by `kill -9`, the pipe closes and the command's whole process group is killed. A death
signal by `prctl` would not do: it follows the thread that forked, and tasks run in threads that come and go.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading

KILL_AFTER_S = 5.0


def main() -> int:
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)

    def on_signal(number: int, _frame: object) -> None:
        os.killpg(child.pid, number)

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, args=(child,), daemon=True).start()
    code = child.wait()
    kill_group(child.pid)  # whatever the command itself left behind
    return code if code >= 0 else 128 - code


def watch(child: "subprocess.Popen[bytes]") -> None:
    """Wait for the other end to close, then end the group."""
    while os.read(0, 1024):
        pass
    kill_group(child.pid)


def kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
