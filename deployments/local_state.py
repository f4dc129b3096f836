"""What `slipway up` started: the document `local.json` in `SLIPWAY_HOME`."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.core.files import write_atomically
from tasks.core.settings import Settings


class StartedProcess(BaseModel):
    """A process by id and start time, so that a reused id is not taken for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    started_at: float

    @classmethod
    def of(cls, pid: int) -> StartedProcess:
        """The running process of that id."""
        return cls(pid=pid, started_at=psutil.Process(pid).create_time())

    def find(self) -> psutil.Process | None:
        """The process, if it still runs."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            if process.create_time() == self.started_at and process.status() != psutil.STATUS_ZOMBIE:
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
