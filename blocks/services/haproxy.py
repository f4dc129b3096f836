"""HAProxy as a process of its own that outlives this one, spoken to by its runtime socket."""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import psutil
from pydantic import ValidationError

from blocks.processes.process import last_lines
from tasks.core.addresses import host_and_port
from tasks.core.child_environment import child_environment
from tasks.core.errors import MissingToolError, PortTakenError, RolloutError
from tasks.core.files import write_atomically
from tasks.rollout.container.models import SLOTS, Route, Slot, SlotName
from tasks.rollout.container.proxy import BACKEND, proxy_config

_CONFIG = "haproxy.cfg"
_PID = "haproxy.pid"
_SOCKET = "admin.sock"
_ROUTE = "route.json"
_FOLDERS = "/usr/sbin:/usr/local/sbin"
"""Where it is installed, though these may not be on the path of whoever deploys."""

_START_TIMEOUT_S = 10
_POLL_S = 0.02

_MAINTENANCE = 0x01 | 0x02 | 0x20 | 0x40
_DRAIN = 0x08 | 0x10
"""Bits of srv_admin_state (management guide, `show servers state`). 0x04 says nothing of now: it stays set
for a server that was disabled in the configuration file."""


class HAProxy:
    """One proxy, known by the folder that holds its configuration, socket and process id."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def program() -> str:
        """Path of haproxy. Raises `MissingToolError`."""
        found = shutil.which("haproxy", path=f"{os.environ.get('PATH', os.defpath)}:{_FOLDERS}")
        if found is None:
            raise MissingToolError(
                "target docker needs HAProxy to switch traffic, and it is not installed",
                fix="apt-get install haproxy, or use target: process",
            )
        return found

    def route(self) -> Route | None:
        """What the proxy was last configured with; None if it never was."""
        try:
            return Route.model_validate_json((self.folder / _ROUTE).read_bytes())
        except (OSError, ValidationError):
            return None

    def save(self, route: Route) -> None:
        """What the proxy is to serve when it is started the next time. Does not change a running one."""
        write_atomically(self.folder / _CONFIG, proxy_config(route))
        write_atomically(self.folder / _ROUTE, route.model_dump_json(indent=1))

    def start(self) -> None:
        """Start it with its saved configuration, and wait until it answers.

        Raises `PortTakenError` where its address is in use, `RolloutError` with what it printed.
        """
        route = self.route()
        if route is None:
            raise RolloutError(f"{self.folder} holds no configuration of a proxy", fix="deploy again")
        unheard = self._process()
        (self.folder / _PID).unlink(missing_ok=True)
        files = {"-C": self.folder, "-f": self.folder / _CONFIG, "-p": self.folder / _PID}
        argv = [self.program(), "-D", *(str(part) for pair in files.items() for part in pair)]
        if (
            unheard is not None
        ):  # it lost its socket: the new one takes the address over, requests end in the old one
            argv += ["-sf", str(unheard.pid)]
        # Not under a process guard: it outlives this process, and puts itself into a session of its own.
        try:
            done = subprocess.run(
                argv,
                capture_output=True,
                text=True,
                timeout=_START_TIMEOUT_S,
                check=False,
                cwd="/",
                env=child_environment(os.environ),
                umask=0o077,
            )
        except subprocess.TimeoutExpired as error:
            raise RolloutError(f"HAProxy did not start within {_START_TIMEOUT_S} s") from error
        if done.returncode != 0:
            if "Address already in use" in done.stderr:
                raise PortTakenError(
                    f"{host_and_port(route.host, route.port)} is in use", fix="choose another rollout.port"
                )
            raise RolloutError("HAProxy did not start", detail=last_lines(done.stderr))
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self.answers():
            if time.monotonic() > deadline:
                raise RolloutError(f"HAProxy does not answer at {self.folder / _SOCKET}")
            time.sleep(_POLL_S)

    def answers(self) -> bool:
        """Whether the proxy runs and takes commands."""
        try:
            return "Pid:" in self._ask("show info")
        except OSError:
            return False

    def lives(self) -> bool:
        """Whether its process is there, whether or not it takes commands."""
        return self._process() is not None

    def slots(self) -> dict[SlotName, Slot]:
        """Both slots as they are now. Raises `RolloutError` if the proxy is dead."""
        states = _table(self._commands((f"show servers state {BACKEND}",)), "# be_id", " ", "srv_name")
        stats = _table(self._commands(("show stat -1 4 -1",)), "# pxname", ",", "svname")
        return {
            name: Slot(
                state=_admin_state(int(states[name]["srv_admin_state"])),
                port=int(states[name]["srv_port"]),
                requests=int(stats[name]["scur"]) + int(stats[name]["qcur"]),
                sent_bytes=int(stats[name]["bout"]),
            )
            for name in SLOTS
        }

    def send(self, commands: Sequence[str]) -> None:
        """Give all commands in one message: a killed sender has sent all of them or none.

        Raises `RolloutError` with what the proxy answered to a command that it did not take.
        """
        answer = self._commands(commands)
        refused = [line for line in answer.splitlines() if line and "chang" not in line]
        if refused:
            raise RolloutError("HAProxy refused a command", detail="\n".join(refused))

    def stop(self, *, drain_s: float) -> None:
        """Give up the address, let requests end for `drain_s`, end the process, remove the folder.

        Idempotent.
        """
        process = self._process()
        if process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGUSR1)  # stop listening, end with the last request
                with contextlib.suppress(psutil.TimeoutExpired):
                    process.wait(timeout=drain_s)
                process.kill()
                process.wait(timeout=_START_TIMEOUT_S)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _process(self) -> psutil.Process | None:
        """The proxy's process: the one in the pid file if that is its own, else the one with its configuration."""
        with contextlib.suppress(OSError, ValueError, psutil.NoSuchProcess):
            named = psutil.Process(int((self.folder / _PID).read_text()))
            if self._is_own(named):
                return named
        return next((process for process in psutil.process_iter() if self._is_own(process)), None)

    def _is_own(self, process: psutil.Process) -> bool:
        config = os.path.realpath(self.folder / _CONFIG)
        try:
            return (
                process.name() == "haproxy"
                and any(
                    os.path.realpath(word) == config for word in process.cmdline() if word.startswith("/")
                )
                and process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.Error:
            return False

    def _commands(self, commands: Sequence[str]) -> str:
        try:
            return self._ask(";".join(commands))
        except OSError as error:
            raise RolloutError(
                f"the proxy of {self.folder} does not answer: {error}",
                fix="deploy again: it is then restarted",
            ) from error

    def _ask(self, line: str) -> str:
        folder = os.open(self.folder, os.O_PATH | os.O_DIRECTORY)
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(_START_TIMEOUT_S)
                # A socket's path has room for 107 bytes; by the folder's descriptor it is always short.
                connection.connect(f"/proc/self/fd/{folder}/{_SOCKET}")
                connection.sendall(f"{line}\n".encode())
                return b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()
        finally:
            os.close(folder)


def _table(answer: str, header: str, delimiter: str, key: str) -> dict[str, dict[str, str]]:
    """Rows of an answer below the line that starts with `header`, by their column `key`."""
    lines = answer[answer.index(header) :].removeprefix("# ").strip().splitlines()
    return {row[key]: row for row in csv.DictReader(lines, delimiter=delimiter)}


def _admin_state(bits: int) -> Literal["ready", "drain", "maint"]:
    if bits & _MAINTENANCE:
        return "maint"
    return "drain" if bits & _DRAIN else "ready"
