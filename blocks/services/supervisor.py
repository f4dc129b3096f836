"""`target: process`: the client of a service's supervisor (`tasks/rollout/daemon`)."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

import psutil

from blocks.processes.environment_users import running_below
from blocks.processes.ports import check_port_free, port_taken
from blocks.processes.process import last_lines
from blocks.services.haproxy import haproxy_to_start
from blocks.services.kept_code import GUARD, SUPERVISOR, keep_daemons, lasting_python
from tasks.core.child_environment import Needs, child_environment
from tasks.core.errors import BusyError, RecordError, RolloutError
from tasks.core.release import Release, ServiceFolder
from tasks.core.settings import Settings
from tasks.rollout.daemon.logs import engine_log_path
from tasks.rollout.daemon.state import STATE_FILE
from tasks.rollout.daemon.supervisor import LOCK_FILE
from tasks.rollout.models import Running
from tasks.rollout.proxy.keys import Digests
from tasks.rollout.target import NewRelease

_ANSWER_S = 30.0
_START_S = 30.0
_POLL_S = 0.02
_LOST_SOCKET_S = 5.0
_LOG_BYTES = 1 << 16
T = TypeVar("T")

_HANG_UPS = 3
"""A process that was killed closes its sockets one by one: a new connection may still get through."""


class HungUpError(RolloutError):
    """The supervisor ended, or stopped answering, while it was being asked."""


class SilentError(HungUpError):
    """The supervisor exists but does not answer: it is suspended, or waits for ever."""


class SupervisedService:
    """One service's supervisor, spoken to over its control socket. Implements `Target`.

    What is started here and not settled ends when the connection does: that is with this object, or with
    this process however it ends.
    """

    def __init__(self, folder: ServiceFolder) -> None:
        self._folder = folder
        self._connection: socket.socket | None = None
        self._unread = b""

    def __enter__(self) -> SupervisedService:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. The supervisor lives on as long as it has something to serve."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._unread = None, b""

    def running(self) -> Running | None:
        """What takes traffic now; None without a supervisor."""

        def status() -> dict[str, Any] | None:
            return self._ask("status") if self._connect() else None

        answer = _patiently(status)
        return Running.model_validate(answer) if answer and answer["release"] is not None else None

    def written(self) -> Running | None:
        """What the supervisor wrote down to bring back."""
        try:
            state = json.loads((self._folder.root / STATE_FILE).read_bytes())
            return Running(release=state["release"], host=state["host"], port=state["port"], up=False)
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            return None

    def claim(self, host: str, port: int | None, digests: Digests = None) -> int:
        """Start the supervisor if there is none, and have it listen there."""

        def claim() -> int:
            if not self._connect():
                if port is not None:
                    check_port_free(host, port)
                self._start_supervisor()
            locked: dict[str, Any] = {} if digests is None else {"digests": digests}
            op = "claim_locked" if locked else "claim"
            claimed: int = self._ask(op, host=host, port=port, **locked)["port"]
            return claimed

        return _patiently(claim)

    def lock(self, digests: Digests) -> None:
        """Have the supervisor's proxy let in only requests with such a key; None lets in everyone."""
        if not self._connect():
            raise self._hung_up()
        self._ask("lock", digests=digests)

    def start(self, release: Release) -> NewRelease:
        """Have the supervisor start the release on a free port of the loopback."""
        answer = self._ask(
            "start",
            release=release.id,
            argv=release.launch.argv,
            env=release.launch.env,
            drain_s=release.spec.rollout.drain_s,
        )
        return NewRelease(release.id, answer["base_url"])

    def fault(self, new: NewRelease) -> str | None:
        """How the new release died; None while it lives."""
        fault: str | None = self._ask("newcomer", lines=0)["fault"]
        return fault

    def new_release_log(self, new: NewRelease, lines: int) -> str:
        """The end of what the new release printed."""
        return "\n".join(self._ask("newcomer", lines=lines)["tail"])

    def switch(self, new: NewRelease) -> None:
        """Send new requests to the new release."""
        self._ask("switch")

    def settle(self, new: NewRelease, *, drain_s: float) -> None:
        """Keep the new release; the supervisor drains and ends the previous one by itself."""
        self._ask("settle", drain_s=drain_s)

    def end_previous(self, *, drain_s: float) -> None:
        """Nothing: the supervisor does."""

    def revert(self, new: NewRelease, *, drain_s: float) -> None:
        """End the new release. A supervisor that died has done so already."""
        if self._connection is not None:
            with contextlib.suppress(RolloutError):
                self._ask("revert", timeout_s=_ANSWER_S + drain_s)

    def stop(self, *, drain_s: float) -> None:
        """End the engine and the supervisor, and wait until both are gone."""
        if self._connect():
            self._ask("stop", drain_s=drain_s, timeout_s=_ANSWER_S + drain_s)
            self.close()
            self._wait_for_end()

    def kill(self) -> None:
        """End a supervisor that does not answer, and all that it started, at once."""
        self.close()
        for supervisor in self._supervisors():
            with contextlib.suppress(psutil.Error):
                for one in (*supervisor.children(recursive=True), supervisor):
                    one.kill()
        self._wait_for_end()

    def log_tail(self, lines: int) -> str:
        """The end of the log of the engine that serves; of the newest log if none does."""
        try:
            state = self._folder.state()
        except RecordError:
            state = None
        if state is not None and (log := engine_log_path(self._folder.logs, state.release)).is_file():
            return _tail(log, lines)
        found = (path for path in self._folder.logs.glob("engine-*.log") if path.is_file())
        logs = sorted(found, key=lambda path: path.stat().st_mtime)
        return _tail(logs[-1], lines) if logs else ""

    def _connect(self) -> bool:
        """Whether a supervisor listens. One that lost its socket makes a new one within a moment."""
        deadline = time.monotonic() + _LOST_SOCKET_S
        while not self._reach():
            if not self._lives() or time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def _lives(self) -> bool:
        """Whether there is a supervisor: one whose lock file was lost has made no new one for a moment."""
        return self._is_locked() or bool(self._supervisors())

    def _supervisors(self) -> list[psutil.Process]:
        found = []
        for pid in running_below(self._folder.root):
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                if SUPERVISOR in (Path(word).name for word in process.cmdline()):
                    found.append(process)
        return found

    def _is_locked(self) -> bool:
        """Whether a supervisor holds the lock that it holds for as long as it lives."""
        try:
            with (self._folder.root / LOCK_FILE).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def _reach(self) -> bool:
        if self._connection is not None:
            return True
        try:
            folder = os.open(self._folder.root, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return False
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_ANSWER_S)
        try:
            # By the folder's descriptor: a socket's own path may have 107 bytes at most.
            connection.connect(f"/proc/self/fd/{folder}/{self._folder.control_socket.name}")
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            connection.close()
            return False
        finally:
            os.close(folder)
        self._connection = connection
        return True

    def _start_supervisor(self) -> None:
        """Start it, and connect. It waits for that as long as the pipe is open that is its standard input."""
        self._folder.root.mkdir(parents=True, exist_ok=True)
        reader, writer = os.pipe()
        with os.fdopen(reader) as waits, os.fdopen(writer, "w"):
            self._run_supervisor(waits)
            if not self._connect():
                raise self._hung_up()
            self._ask("status")  # it has accepted the connection, and lives for that from now on

    def _run_supervisor(self, waits: IO[str]) -> None:
        settings = Settings.load()
        code, haproxy = keep_daemons(settings.home), haproxy_to_start(settings)
        command = [lasting_python(), "-I", "-S", str(code / SUPERVISOR), "--folder", str(self._folder.root)]
        try:
            subprocess.run(
                [*command, "--guard", str(code / GUARD), "--haproxy", str(haproxy)],
                env=child_environment(os.environ, Needs.COMPUTE),
                stdin=waits,
                capture_output=True,
                text=True,
                timeout=_START_S,
                check=True,
            )
        except subprocess.SubprocessError as error:
            output = getattr(error, "stderr", None) or ""
            raise RolloutError(
                f"the supervisor of {self._folder.name} did not start",
                fix=f"read {self._folder.logs / 'supervisor.err'}",
                detail=last_lines(output if isinstance(output, str) else output.decode(errors="replace")),
            ) from None

    def _ask(self, op: str, *, timeout_s: float | None = None, **arguments: Any) -> dict[str, Any]:
        if self._connection is None:
            raise self._hung_up()
        request = {"op": op, **arguments}
        try:
            self._connection.settimeout(_ANSWER_S if timeout_s is None else timeout_s)
            self._connection.sendall(json.dumps(request).encode() + b"\n")
            answer: dict[str, Any] = json.loads(self._read_line(self._connection))
        except TimeoutError as error:
            self.close()
            raise self._hung_up(SilentError) from error
        except (OSError, ValueError) as error:
            self.close()
            raise self._hung_up() from error
        if answer.pop("ok"):
            return answer
        raise self._refused(answer["code"], answer["error"], arguments)

    def _read_line(self, connection: socket.socket) -> bytes:
        while b"\n" not in self._unread:
            more = connection.recv(1 << 16)
            if not more:
                raise ConnectionResetError("the supervisor hung up")
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _refused(self, code: str, message: str, arguments: dict[str, Any]) -> Exception:
        if code == "port_taken":
            return port_taken(arguments["host"], arguments["port"])
        if code == "busy":
            return BusyError(f"{self._folder.name}: {message}", fix="wait for it to end, then try again")
        if code == "unknown":
            return RolloutError(
                f"{self._folder.name} runs with a supervisor of an older Slipway, which checks no keys",
                fix=f"restart it: slipway stop {self._folder.name}, then deploy again",
            )
        return RolloutError(f"{self._folder.name}: {message}")

    def _hung_up(self, kind: type[HungUpError] = HungUpError) -> HungUpError:
        return kind(
            f"the supervisor of {self._folder.name} does not answer",
            fix=f"read {self._folder.logs / 'supervisor.log'}; deploying again starts a new one",
        )

    def _wait_for_end(self) -> None:
        deadline = time.monotonic() + _ANSWER_S
        while self._lives() and time.monotonic() < deadline:
            time.sleep(_POLL_S)


def _patiently(ask: Callable[[], T]) -> T:
    """The answer of a supervisor that may be ending when it is asked: it is gone then, or there is another one."""
    for _ in range(_HANG_UPS - 1):
        try:
            return ask()
        except SilentError:
            raise
        except HungUpError:
            continue
    return ask()


def _tail(log: Path, lines: int) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_BYTES))
        return last_lines(file.read().decode(errors="replace"), lines)
