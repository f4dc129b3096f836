"""A local Prefect API server: for one run under a process guard, or detached for `slipway up`.

Both are behind the guard of `blocks/prefect/local_api.py` and require the home's key.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx

from blocks.prefect.api_key import api_key, key_file
from blocks.prefect.database import database_file, hold_database, ready_database
from blocks.prefect.schema import lay_out
from blocks.processes.ports import LOCALHOST, free_port, is_own_listener
from blocks.processes.process import guarded, last_lines, terminate
from tasks.core.child_environment import Needs, child_environment
from tasks.core.errors import AccessError, NetworkError, SlipwayError
from tasks.core.files import open_private
from tasks.core.home import make_home, make_private_folder
from tasks.core.settings import Settings

START_TIMEOUT_S = 180.0
"""A server starts in 5 s on an idle machine with 2 cores and needs a minute on a loaded one."""

STOP_TIMEOUT_S = 5.0

ANSWER_TIMEOUT_S = 30.0
"""A busy server may take seconds to answer."""

_POLL_S = 0.05

ANOTHER_PORT = "choose another port: slipway down, then: slipway up --port N"
"""The suggested fix if another user's program has the port of `slipway up`."""

_DATABASE = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL")
"""Prefect's settings that name its database."""

_WITHOUT_SCHEDULING = {
    f"PREFECT_SERVER_SERVICES_{service}_ENABLED": "false"
    for service in ("SCHEDULER", "LATE_RUNS", "FOREMAN", "TRIGGERS", "REPOSSESSOR", "PAUSE_EXPIRATIONS")
}
"""For the server of one command, which schedules nothing and only records what happened."""


def database_url(settings: Settings) -> str:
    """Address of the local server's SQLite file, written so that Prefect opens only one connection to it.

    With several connections, concurrent requests end in 503 ("database is locked"), and sometimes the whole server
    blocks for a minute (docs/adr/0007). Prefect opens a single connection if the address contains `:memory:`, which
    SQLite ignores in the query part of a file's address.
    """
    return f"sqlite+aiosqlite:///file:{quote(str(database_file(settings)))}?uri=true&pool=:memory:"


def server_environment(settings: Settings, api_url: str) -> dict[str, str]:
    """Environment of the local server and its clients: its own home and key, and no telemetry.

    A database that the user has chosen is kept.
    """
    chosen = any(name in os.environ for name in _DATABASE)
    return {
        **({} if chosen else {_DATABASE[0]: database_url(settings)}),
        "PREFECT_HOME": str(settings.prefect_home),
        "PREFECT_API_URL": api_url,
        "PREFECT_API_AUTH_STRING": api_key(settings),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "SLIPWAY_HOME": str(settings.home),
    }


def keeps_own_database(settings: Settings) -> bool:
    """Whether the local server's database is Slipway's own file, to which no other host's server writes."""
    own = database_url(settings)
    return all(os.environ.get(name, own) == own for name in _DATABASE)


def ready_own_database(settings: Settings) -> None:
    """Have a database that a server can start with, unless the user chose another. Raises as `ready_database`."""
    if keeps_own_database(settings):
        ready_database(settings)
        with hold_database(settings):
            if not database_file(settings).exists():
                lay_out(database_file(settings))


def guard_environment(settings: Settings, api_url: str) -> dict[str, str]:
    """Settings for the server only: the key that it requires, and that only its own pages may call it."""
    return {
        **server_environment(settings, api_url),
        "PREFECT_SERVER_API_AUTH_STRING": api_key(settings),
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": api_url.removesuffix("/api"),
        "PREFECT_SERVER_UI_API_URL": "/api",  # under whatever name the page itself was opened
    }


def server_command(port: int) -> tuple[str, ...]:
    """The command that starts a server on the loopback; `-P` ignores a `blocks/` in the current folder."""
    return (sys.executable, "-P", "-m", "blocks.prefect.local_api", str(port))


def port_of_server(command: Sequence[str]) -> int | None:
    """The port in that command line; None if it is not such a server's."""
    match command:
        case [_, "-P", "-m", "blocks.prefect.local_api", port] if port.isdecimal():
            return int(port)
    return None


def is_temporary(environ: Mapping[str, str]) -> bool:
    """Whether a server with that environment belongs to one command (`temporary_server`)."""
    return environ.items() >= _WITHOUT_SCHEDULING.items()


def api_url(port: int) -> str:
    """The API's address for a server on the loopback."""
    return f"http://{LOCALHOST}:{port}/api"


def answers(url: str) -> bool:
    """Whether a Prefect API answers at `url`."""
    try:
        return httpx.get(f"{url}/health", timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def check_door(settings: Settings, url: str) -> None:
    """Raise `AccessError` unless the API at `url` is ours, accepts this home's key, and refuses requests
    without it."""
    check_listener(url)
    user, _, secret = api_key(settings).partition(":")
    asked = f"{url}/admin/version"
    try:
        with httpx.Client(timeout=ANSWER_TIMEOUT_S, trust_env=False) as client:
            taken = client.get(asked, auth=(user, secret)).status_code
            without = client.get(asked).status_code
    except httpx.HTTPError as error:
        raise NetworkError(
            f"the local Prefect server at {url} does not answer: {type(error).__name__}", fix="slipway up"
        ) from error
    if taken != httpx.codes.OK:
        raise AccessError(
            f"the local Prefect server does not accept the key in {key_file(settings)}",
            fix="restart it with this key: slipway up",
        )
    if without == httpx.codes.OK:
        raise AccessError(
            "the local Prefect server was started by an earlier version and is open to every user of this machine",
            fix="restart it with a key: slipway up",
        )


def check_listener(url: str, fix: str = ANOTHER_PORT) -> None:
    """Raise `AccessError` if another user's program has the port: it would get the key."""
    port = urlsplit(url).port
    if port is not None and not is_own_listener(port):
        raise AccessError(
            f"another user's program listens on port {port}, which the local Prefect server needs", fix=fix
        )


def wait_until_it_answers(
    url: str, alive: Callable[[], bool], log: Path, *, taken_fix: str = ANOTHER_PORT
) -> None:
    """Wait for a server that was just started. Raises `SlipwayError` with the end of its log.

    Raises `AccessError` with `taken_fix` if another user's program has taken the port.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while not answers(url):
        if not alive() or time.monotonic() > deadline:
            raise SlipwayError(
                f"the local Prefect server {'does not answer' if alive() else 'ended while starting'}",
                fix=f"read {log}; if it blames the database, move that away: it only contains past runs",
                detail=last_lines(log.read_text(errors="replace")),
            )
        time.sleep(_POLL_S)
    check_listener(url, taken_fix)


@dataclass(frozen=True)
class TemporaryServer:
    """A server that was started for this process, and may not answer yet."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    key: str

    def wait(self) -> None:
        """Return once it answers. Raises `SlipwayError` if it does not."""
        again = "run the command again: it chooses another port"
        wait_until_it_answers(self.url, lambda: self.process.poll() is None, self.log, taken_fix=again)


@contextlib.contextmanager
def temporary_server(settings: Settings) -> Iterator[TemporaryServer]:
    """A server that ends with this process; yielded at once, before it answers.

    It shares the database with `slipway up`'s server, so its runs are visible there later.
    """
    port = free_port()
    url = api_url(port)
    make_home(settings.home)
    ready_own_database(settings)
    log = settings.home / "logs" / "prefect-server.log"
    make_private_folder(log.parent)
    environment = {**guard_environment(settings, url), **_WITHOUT_SCHEDULING}
    with (
        open_private(log, "wb") as output,
        guarded(
            server_command(port), stdout=output, stderr=output, needs=(Needs.PREFECT_SERVER,), env=environment
        ) as child,
    ):
        yield TemporaryServer(url, child, log, api_key(settings))
        terminate(child, timeout_s=STOP_TIMEOUT_S)  # so that the last requests reach the database


def start_detached(
    command: tuple[str, ...], *, needs: Sequence[Needs | str], env: Mapping[str, str], log: Path
) -> int:
    """Start a process that outlives this one; its process id. Its environment is that of `process.run`."""
    make_private_folder(log.parent)
    with open_private(log, "ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**child_environment(os.environ, *needs), **env},
            start_new_session=True,
        )
    return child.pid
