"""`python -I -m tasks.rollout.daemon --folder SERVICE --leash SCRIPT`: start a service's supervisor.

Returns once the supervisor listens, or with 1 and the reason. The supervisor itself lives on in a session of
its own, whatever becomes of the command that asked for it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import os
import resource
import signal
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
    logs.mkdir(parents=True, exist_ok=True)
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        return report(reader)
    os.close(reader)
    os.setsid()
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
    asyncio.run(supervise(arguments.folder, arguments.leash, tell))
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


async def supervise(folder: Path, leash: str, tell: Callable[[str], None]) -> None:
    """Serve the control socket until the service is stopped, or the process is told to end."""
    supervisor = Supervisor(folder, leash)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, supervisor.done.set)
    await supervisor.restore()
    control = Control(supervisor)
    server = await control.listen(bind_control_socket(folder))
    supervisor.expire_later()
    tell(READY)
    await supervisor.done.wait()
    server.close()
    await control.close()
    (folder / SOCKET_FILE).unlink(missing_ok=True)
    await supervisor.shut_down()


if __name__ == "__main__":
    sys.exit(main())
