"""What a service's next supervisor brings back: the file `supervisor.json`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tasks.rollout.daemon.engine import Command
from tasks.rollout.daemon.files import part_of, set_aside, write_durably
from tasks.rollout.proxy.keys import Digests, digests_in

STATE_FILE = "supervisor.json"


@dataclass(frozen=True)
class State:
    """What serves where. `since` is in seconds since 1970; `digests` are those of the keys that open the address."""

    command: Command
    host: str
    port: int
    restarts: int
    since: float
    metrics_port: int | None
    digests: Digests

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return self.host, self.port


class StateFile:
    """The state on the disk, as this supervisor wrote or read it."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._file = folder / STATE_FILE
        self._say = say
        self._written: bytes | None = None

    def read(self) -> State | None:
        """What the last supervisor wrote. What cannot be read is set aside, and counts as nothing."""
        try:
            part_of(self._file).unlink(missing_ok=True)
            data = self._file.read_bytes()
            state = _parse(data)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
            self._say(f"{STATE_FILE} cannot be read and is set aside: {type(error).__name__}: {error}")
            set_aside(self._file, self._folder)
            return None
        self._written = data
        return state

    def write(self, state: State) -> None:
        """Raises `OSError`; the state of before then stays."""
        data = _render(state)
        write_durably(self._file, data)
        self._written = data

    def mend(self) -> None:
        """Write again what was lost or damaged. Raises `OSError`."""
        if self._written is None:
            return
        with contextlib.suppress(OSError):
            if self._file.read_bytes() == self._written:
                return
        self._say(f"{STATE_FILE} was damaged and is rewritten")
        if self._file.is_dir():
            set_aside(self._file, self._folder)
        write_durably(self._file, self._written)

    def remove(self) -> None:
        """There is nothing to bring back."""
        self._written = None
        with contextlib.suppress(IsADirectoryError):
            self._file.unlink(missing_ok=True)


def _parse(data: bytes) -> State:
    document = json.loads(data)
    command = Command(str(document["release"]), tuple(document["argv"]), dict(document["env"]))
    metrics_port = document.get("metrics_port")
    return State(
        command=command,
        host=str(document["host"]),
        port=int(document["port"]),
        restarts=int(document["restarts"]),
        since=float(document["since"]),
        metrics_port=int(metrics_port) if metrics_port else None,
        digests=digests_in(document),
    )


def _render(state: State) -> bytes:
    document = asdict(state)
    return json.dumps({**document.pop("command"), **document}).encode()
