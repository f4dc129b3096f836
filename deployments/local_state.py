"""What `slipway up` started: the document `local.json` in `SLIPWAY_HOME`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from blocks.prefect_database import check_database_in_use
from blocks.prefect_server import check_door, keeps_own_database, wait_until_it_answers
from tasks.core.files import write_atomically
from tasks.core.settings import Settings
from tasks.leaks.daemon import PROC, read_stat

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class StartedProcess(BaseModel):
    """A process by id, boot and start, so that a reused id is not taken for it.

    `start_ticks` are clock ticks since the boot. The time of day would not do: the kernel's moves with every step
    of the clock, also that of a process that started long before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    boot_id: str
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> StartedProcess:
        """The running process of that id. Raises `psutil.NoSuchProcess`."""
        found = read_stat(PROC / str(pid))
        if found is None:
            raise psutil.NoSuchProcess(pid)
        return cls(pid=pid, boot_id=_BOOT_ID.read_text().strip(), start_ticks=found[1])

    @model_validator(mode="before")
    @classmethod
    def _by_time_of_day(cls, value: Any) -> Any:
        """Documents up to November 2026 have the time of day instead: there the command has to tell."""
        match value:
            case {"pid": int(pid), "started_at": _}:
                with contextlib.suppress(psutil.Error):
                    if str(Path(sys.executable).with_name("prefect")) in psutil.Process(pid).cmdline():
                        return cls.of(pid).model_dump()
                return {"pid": pid, "boot_id": "", "start_ticks": 0}  # nobody's: it is found no more
        return value

    def find(self) -> psutil.Process | None:
        """The process, if it still runs."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            if self == StartedProcess.of(self.pid) and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None


class LocalState(BaseModel):
    """The local server and worker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    api_url: str
    server: StartedProcess
    worker: StartedProcess | None = None

    @property
    def alive(self) -> bool:
        """Whether the server still runs."""
        return self.server.find() is not None


def server_log(settings: Settings) -> Path:
    """What the server prints."""
    return settings.home / "logs" / "server.log"


def wait_for_server(settings: Settings, state: LocalState) -> None:
    """Return once the server answers: who started it may have been interrupted.

    Raises `SlipwayError` also for a damaged database, and if it does not take the home's key, or takes none.
    """
    wait_until_it_answers(state.api_url, lambda: state.alive, server_log(settings))
    check_door(settings, state.api_url)
    if keeps_own_database(settings):
        check_database_in_use(settings)


def state_file(settings: Settings) -> Path:
    """Where the state is kept."""
    return settings.home / "local.json"


def read_local_state(settings: Settings) -> LocalState | None:
    """What was started last, alive or not."""
    try:
        return LocalState.model_validate_json(state_file(settings).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def write_local_state(settings: Settings, state: LocalState) -> None:
    """Remember what was started."""
    write_atomically(state_file(settings), state.model_dump_json(indent=1))
