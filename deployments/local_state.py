"""What `slipway up` started: the document `local.json` in `SLIPWAY_HOME`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import psutil
from pydantic import ValidationError, field_validator

from blocks.prefect.database import check_database_in_use
from blocks.prefect.server import check_door, keeps_own_database, wait_until_it_answers
from blocks.processes.started_process import StartedProcess
from deployments.local_processes import local_processes
from tasks.core.files import write_atomically
from tasks.core.frozen import Frozen
from tasks.core.settings import Settings

_ENDED = StartedProcess(pid=1, boot_id="", start_ticks=0)
"""A process that no longer exists. A worker that ended may have left runs behind; one that never existed has none."""


class LocalState(Frozen):
    """The local server and worker."""

    api_url: str
    server: StartedProcess
    worker: StartedProcess | None = None

    @field_validator("server", "worker", mode="before")
    @classmethod
    def _by_time_of_day(cls, value: Any) -> Any:
        """Documents up to November 2026 have the time of day instead: then the command line identifies the
        process."""
        match value:
            case {"pid": int(pid), "started_at": _}:
                with contextlib.suppress(psutil.Error):
                    if str(Path(sys.executable).with_name("prefect")) in psutil.Process(pid).cmdline():
                        return StartedProcess.of(pid)
                return _ENDED
        return value

    @property
    def alive(self) -> bool:
        """Whether the server still runs."""
        return self.server.find() is not None


def server_log(settings: Settings) -> Path:
    """Log of the server's output."""
    return settings.home / "logs" / "server.log"


def wait_for_server(settings: Settings, state: LocalState) -> None:
    """Return once the server answers; the command that started it may have been interrupted.

    Raises `SlipwayError` also for a damaged database, and if the server does not accept the home's key, or
    needs none.
    """
    wait_until_it_answers(state.api_url, lambda: state.alive, server_log(settings))
    check_door(settings, state.api_url)
    if keeps_own_database(settings):
        check_database_in_use(settings)


def state_file(settings: Settings) -> Path:
    """Path of the state."""
    return settings.home / "local.json"


def read_local_state(settings: Settings) -> LocalState | None:
    """What was started last, alive or not.

    If the document is gone or damaged, or names a server that ended, but a server of this home runs, it is
    that one: a second server would write to the same database.
    """
    kept = _read(settings)
    return kept if kept is not None and kept.alive else _running(settings) or kept


def _read(settings: Settings) -> LocalState | None:
    try:
        return LocalState.model_validate_json(state_file(settings).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _running(settings: Settings) -> LocalState | None:
    """The oldest running server, and its worker."""
    found = local_processes(settings.home)
    server = next((local for local in found if local.name == "server"), None)
    if server is None:
        return None
    workers = (local.process for local in found if (local.name, local.api_url) == ("worker", server.api_url))
    return LocalState(api_url=server.api_url, server=server.process, worker=next(workers, _ENDED))


def write_local_state(settings: Settings, state: LocalState) -> None:
    """Save the state."""
    write_atomically(state_file(settings), state.model_dump_json(indent=1))
