"""`python -I -S supervisor.py --folder SERVICE --leash SCRIPT`: start a service's supervisor.

Returns once the supervisor listens, or with 1 and the reason. The supervisor itself lives on in a session of
its own, whatever becomes of the command that asked for it. Where standard input is a pipe, a supervisor that has
nothing to serve waits for requests as long as the pipe's other end is open: until who started it has connected.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import os
import resource
import signal
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tasks.rollout.daemon.control import SOCKET_FILE, Control, bind_control_socket
from tasks.rollout.daemon.supervisor import Supervisor

READY = "ready"
LOCK_WAIT_S = 10.0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--leash", required=True)
    arguments = parser.parse_args()
    logs: Path = arguments.folder / "logs"
    os.umask(0o077)
    logs.mkdir(parents=True, exist_ok=True)
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        return report(reader)
    os.close(reader)
    os.setsid()
    starter = os.dup(0) if stat.S_ISFIFO(os.fstat(0).st_mode) else None
    detach(logs / "supervisor.err")

    def tell(line: str) -> None:
        os.write(writer, line.encode())
        os.close(writer)

    if not take_lock(arguments.folder / "supervisor.lock"):
        tell("another supervisor of this service is still ending")
        return 1
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 1 << 16)), hard))
    asyncio.run(supervise(arguments.folder, arguments.leash, tell, starter))
    return 0


def report(reader: int) -> int:
    """Wait for the supervisor's first word; the exit status."""
    with os.fdopen(reader) as pipe:
        word = pipe.read()
    if word == READY:
        return 0
    print(word or "the supervisor died while starting: see supervisor.err", file=sys.stderr)
    return 1


def detach(errors: Path) -> None:
    """Let go of the terminal; what the interpreter itself has to say goes to a file of the last start."""
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    log = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    for number, handle in enumerate((null, log, log)):
        os.dup2(handle, number)


def take_lock(path: Path) -> bool:
    """Be the only supervisor of the service; a former one may need a moment to end."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        else:
            return True


async def supervise(folder: Path, leash: str, tell: Callable[[str], None], starter: int | None) -> None:
    """Serve the control socket until the service is stopped, or the process is told to end.

    `starter` is the pipe whose other end is held by who started this process.
    """
    supervisor = Supervisor(folder, leash)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, supervisor.done.set)
    await supervisor.restore()
    control = Control(supervisor)
    server = await control.listen(bind_control_socket(folder))
    wait_for_starter(supervisor, starter)
    tell(READY)
    await supervisor.done.wait()
    server.close()
    await control.close()
    (folder / SOCKET_FILE).unlink(missing_ok=True)
    await supervisor.shut_down()


def wait_for_starter(supervisor: Supervisor, starter: int | None) -> None:
    """Count who holds the other end of the pipe as connected until it lets go."""
    owner = object()
    supervisor.arrive(owner)

    def gone() -> None:
        if starter is not None:
            asyncio.get_running_loop().remove_reader(starter)
            os.close(starter)
        supervisor.hang_up(owner)

    if starter is None:
        gone()
    else:
        asyncio.get_running_loop().add_reader(starter, gone)


if __name__ == "__main__":
    sys.exit(main())
