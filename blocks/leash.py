"""Run a command that must not outlive the process that asked for it. Standard library only, run as a script.

`python leash.py COMMAND …`: standard input is a pipe whose other end the asking process holds. When that
process ends, even by `kill -9`, the pipe closes and the command's whole process group is killed. A death
signal by `prctl` would not do: it follows the thread that forked, and tasks run in threads that come and go.
Only here, where the main thread forks, it does: the command dies also when the leash itself is killed.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading

PR_SET_PDEATHSIG = 1


def main() -> int:
    child = None
    early: list[int] = []

    def on_signal(number: int, _frame: object) -> None:
        if child is None:
            early.append(number)
        else:
            signal_group(child.pid, number)

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    prctl = ctypes.CDLL(None).prctl
    try:
        child = subprocess.Popen(
            sys.argv[1:],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
        )
    except OSError as error:
        print(f"cannot run {sys.argv[1]}: {error.strerror}", file=sys.stderr)
        return 127
    for number in early:
        signal_group(child.pid, number)
    threading.Thread(target=watch, args=(child,), daemon=True).start()
    code = child.wait()
    signal_group(child.pid, signal.SIGKILL)  # whatever the command itself left behind
    return code if code >= 0 else 128 - code


def watch(child: "subprocess.Popen[bytes]") -> None:
    """Wait for the other end to close, then end the group."""
    while os.read(0, 1024):
        pass
    signal_group(child.pid, signal.SIGKILL)


def signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main())
