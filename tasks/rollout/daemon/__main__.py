"""`python -I -S supervisor.py --folder SERVICE --guard SCRIPT --haproxy PROGRAM`: start a service's supervisor.

Returns once the supervisor listens, or with 1 and the reason. The supervisor itself lives on in a session of
its own, whatever becomes of the command that asked for it. Where standard input is a pipe, a supervisor that has
nothing to serve waits for requests as long as the pipe's other end is open: until its starter has connected.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import resource
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from tasks.rollout.daemon.control import SOCKET_FILE, Control
from tasks.rollout.daemon.files import Lock
from tasks.rollout.daemon.hang import HUNG_S
from tasks.rollout.daemon.proxy import Programs
from tasks.rollout.daemon.supervisor import LOCK_FILE, Supervisor

READY = "ready"
LOCK_WAIT_S = 10.0
MEND_S = 1.0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--guard", required=True)
    parser.add_argument("--haproxy", required=True)
    parser.add_argument("--hung-s", type=float, default=HUNG_S, help="silence that is a death, s")
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

    lock = Lock(arguments.folder / LOCK_FILE)
    if not lock.take(LOCK_WAIT_S):
        tell("another supervisor of this service is still ending")
        return 1
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 1 << 16)), hard))
    programs = Programs(arguments.guard, arguments.haproxy)
    supervisor = Supervisor(arguments.folder, programs, hung_s=arguments.hung_s)
    asyncio.run(supervise(supervisor, lock, tell, starter))
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


async def supervise(
    supervisor: Supervisor, lock: Lock, tell: Callable[[str], None], starter: int | None
) -> None:
    """Serve the control socket until the service is stopped, or the process gets a signal to end.

    `starter` is the pipe whose other end is held by the process that started this one.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, supervisor.done.set)
    await supervisor.restore()
    control = Control(supervisor)
    await control.renew()
    mending = asyncio.create_task(keep_whole(supervisor, control, lock))
    wait_for_starter(supervisor, starter)
    tell(READY)
    await supervisor.done.wait()
    mending.cancel()
    await asyncio.wait([mending])
    await control.close()
    with contextlib.suppress(OSError):
        (supervisor.folder / SOCKET_FILE).unlink(missing_ok=True)
    await supervisor.shut_down()


async def keep_whole(supervisor: Supervisor, control: Control, lock: Lock) -> None:
    """Put back the supervisor's own files when they are lost: a command finds it by them."""
    while True:
        await asyncio.sleep(MEND_S)
        with contextlib.suppress(OSError):  # a full disk, say: the next look tries again
            lock.renew()
        with contextlib.suppress(OSError):
            await control.renew()
        with contextlib.suppress(OSError):
            await supervisor.mend()


def wait_for_starter(supervisor: Supervisor, starter: int | None) -> None:
    """Count the holder of the pipe's other end as connected until it lets go."""
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
