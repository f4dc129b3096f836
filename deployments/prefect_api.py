"""The Prefect API that a command's runs report to.

In this order: the one that `PREFECT_API_URL` names, the server of `slipway up`, a server for this command.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from blocks.prefect.server import TemporaryServer, server_environment, temporary_server
from blocks.prefect.settings import check_api, check_settings, forget_other_servers
from deployments.local_state import LocalState, read_local_state, wait_for_server
from tasks.core.files import check_writable
from tasks.core.home import make_home
from tasks.core.progress import say
from tasks.core.settings import Settings

_NOWHERE = "http://127.0.0.1:9/api"
"""The port to which everything is discarded."""


@dataclass(frozen=True)
class PrefectApi:
    """An API that answers, or a server that is still starting: this command's own, or that of `slipway up`.

    `since` is when it was asked for, by the monotonic clock.
    """

    url: str
    starting: TemporaryServer | None = None
    until_up: Callable[[], None] | None = None
    since: float = field(default_factory=time.monotonic)

    @property
    def stays(self) -> bool:
        """Whether it keeps running after this command has ended."""
        return self.starting is None

    def wait(self) -> None:
        """Return once the API answers. Raises `SlipwayError` if the server that was started does not."""
        if self.starting is not None:
            self.starting.wait()
        if self.until_up is not None:
            self.until_up()
        say("prefect", f"ready at {self.url} after {time.monotonic() - self.since:.1f} s")

    @contextlib.contextmanager
    def quiet_runs(self) -> Iterator[None]:
        """Settings for flows run in this process.

        Heartbeats are for workers: here they would only delay the end of each flow by a second, and the next
        deploy finds runs whose process was killed (`blocks/prefect/stale_runs.py`).
        """
        from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

        with temporary_settings(updates={PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            try:
                yield
            finally:
                if self.starting is not None:
                    _flush()


@contextlib.contextmanager
def prefect_api(settings: Settings) -> Iterator[PrefectApi]:
    """The API to use.

    Enter before the first import of Prefect, which reads its address from the environment. Raises `SlipwayError` for
    a `PREFECT_API_URL` that does not answer as a Prefect API does, `DiskError` if the home is not writable.
    """
    _ready(settings)
    url, local = _given(), _local(settings)
    if url and (local is None or url != local.api_url):
        check_api(url)
        yield PrefectApi(url)
        return
    forget_other_servers(os.environ)
    if local is not None:
        os.environ.update(server_environment(settings, local.api_url))
        check_settings()
        yield PrefectApi(local.api_url, until_up=partial(wait_for_server, settings, local))
        return
    say("prefect", "starting a server for this command; `slipway up` keeps one for all commands")
    since = time.monotonic()
    with temporary_server(settings) as server:
        os.environ.update(server_environment(settings, server.url))
        check_settings()
        yield PrefectApi(server.url, server, since=since)


def needs_own_server(settings: Settings) -> bool:
    """Whether there is no API to report to, so that a server would be started for the command alone."""
    return not _given() and _local(settings) is None


@contextlib.contextmanager
def no_api(settings: Settings) -> Iterator[None]:
    """Name an API that nothing answers, for flows called without Prefect. A later `prefect_api` sets its own."""
    _ready(settings)
    forget_other_servers(os.environ)
    os.environ.update(server_environment(settings, _NOWHERE))
    check_settings()
    try:
        yield
    finally:
        del os.environ["PREFECT_API_URL"]


def _ready(settings: Settings) -> None:
    """Make the home, and tell Prefect how to log, before its first import.

    Raises `DiskError` if the home cannot be written: a run that cannot be recorded is of no use.
    """
    make_home(settings.home)
    check_writable(settings.home)
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "slipway")
    # A run's log goes to the API; the command prints its own messages on the terminal.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")


def _given() -> str:
    """The API that the environment names."""
    return os.environ.get("PREFECT_API_URL", "").rstrip("/")


def _local(settings: Settings) -> LocalState | None:
    """The server of `slipway up`, if it runs."""
    state = read_local_state(settings)
    return state if state is not None and state.alive else None


def _flush() -> None:
    """Deliver queued messages before this command's server ends."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogHandler

    EventsWorker.drain_all(timeout=5)
    APILogHandler().flush()
