"""One engine under supervision: a process under a process guard, started again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from tasks.rollout.daemon.hang import HUNG_S, HangWatch, Traffic, cpu_seconds
from tasks.rollout.daemon.logs import BoundedLog, engine_log_path
from tasks.rollout.proxy.slots import BACKEND_HOST

TERM_S = 5.0
"""How long an engine has to end by itself once its requests are drained."""
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0
STEADY_S = 60.0
"""An engine that lived this long starts again at once when it dies."""
KEPT_LINES = 200
POLL_S = 0.05
PUMP_S = 2.0
"""How long to wait for the last lines of a dead engine, whose output a stray child may hold open."""


@dataclass(frozen=True)
class Command:
    """How a release is started; `argv` contains `{host}` and `{port}`."""

    release: str
    argv: tuple[str, ...]
    env: dict[str, str]


class Engine:
    """One release's engine in one slot of the proxy. Only a settled one is started again when it dies.

    `look` says what traffic the proxies have for the slot.
    """

    def __init__(
        self,
        command: Command,
        slot: str,
        *,
        look: Callable[[str], Awaitable[Traffic]],
        guard: str,
        logs: Path,
        changed: Callable[[Engine], None],
        restarts: int = 0,
        hung_s: float = HUNG_S,
    ) -> None:
        self.command = command
        self.slot = slot
        self.port = _free_port()
        self.restarts = restarts
        self.settled = False
        self.fault: str | None = None
        self.lines: deque[bytes] = deque(maxlen=KEPT_LINES)
        self._guard = guard
        self._changed = changed
        self._look = look
        self._hung_s = hung_s
        self._hung: str | None = None
        self._log = BoundedLog(engine_log_path(logs, command.release))
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._pump: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()
        self._spawning = asyncio.Lock()

    @property
    def up(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int | None:
        """Root of its process tree."""
        return self._process.pid if self._process is not None and self.up else None

    @property
    def tail(self) -> list[str]:
        """The last lines it printed, over its restarts."""
        return [line.decode(errors="replace") for line in self.lines]

    async def start(self) -> None:
        """Start the process and watch it. Raises `OSError` if it cannot be started."""
        await self._spawn()
        self._watch = asyncio.create_task(self._keep_running())

    async def resume(self) -> None:
        """Start the release that served before, and keep trying if that fails."""
        self.settled = True
        try:
            await self._spawn()
        except OSError as error:
            self._note(f"cannot be started: {error}")
        self._watch = asyncio.create_task(self._keep_running())

    async def retire(self, drain_s: float) -> None:
        """End it once its requests are answered, or after `drain_s`."""
        if not (left := await self._drained(drain_s)).over:
            count = left.requests if left.known else "all"
            self._log.say(f"cut {count} requests still open after {drain_s:g} s")
        self._ending.set()
        async with self._spawning:
            await self._end()
        if self._watch is not None:
            await self._watch
        self._log.close()

    async def traffic(self) -> Traffic:
        """What the proxies have for it now."""
        return await self._look(self.slot)

    async def _drained(self, drain_s: float) -> Traffic:
        """Wait until no request is open for sure; what is left after `drain_s`."""
        deadline = time.monotonic() + drain_s
        while not (left := await self.traffic()).over and time.monotonic() < deadline:
            await asyncio.sleep(POLL_S)
        return left

    async def _spawn(self) -> None:
        """At its port of before if that is free: there its requests wait for it."""
        self.port = _free_port(self.port)
        here = {"{host}": BACKEND_HOST, "{port}": str(self.port)}
        argv = [
            arg.replace("{host}", here["{host}"]).replace("{port}", here["{port}"])
            for arg in self.command.argv
        ]
        self._log.say(f"starting on port {self.port}")
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", self._guard, *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **self.command.env},
        )  # fmt: skip
        self._pump = asyncio.create_task(self._keep_log(self._process))

    async def _keep_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        unfinished = b""
        while data := await process.stdout.read(1 << 16):
            self._log.write(data)
            *lines, unfinished = (unfinished + data).split(b"\n")
            self.lines.extend(lines)
            unfinished = unfinished[-4096:]
        if unfinished:
            self.lines.append(unfinished)

    async def _keep_running(self) -> None:
        quick_deaths = 0
        while True:
            if self._process is not None:
                started = time.monotonic()
                watching = asyncio.create_task(self._kill_when_hung(self._process))
                code = await self._process.wait()
                watching.cancel()
                if self._pump is not None:
                    await asyncio.wait([self._pump], timeout=PUMP_S)
                if self._ending.is_set():
                    return
                self._note(self._hung or _describe(code))
                self._hung = None
                if not self.settled:
                    self._changed(self)
                    return
                quick_deaths = 0 if time.monotonic() - started > STEADY_S else quick_deaths + 1
            if not await self._start_again(quick_deaths):
                return

    async def _kill_when_hung(self, process: asyncio.subprocess.Process) -> None:
        """A new release is left to its gate."""
        watch = HangWatch(self.port, self.traffic, self._hung_s, cpu_s=lambda: cpu_seconds(process.pid))
        while True:
            await asyncio.sleep(watch.period_s)
            if await watch.is_hung() and self.settled:
                self._hung = (
                    f"hung: {(await self.traffic()).requests} requests waited {self._hung_s:g} s without a byte, "
                    "/health did not answer and no CPU time was used; killed"
                )
                await kill(process)

    async def _start_again(self, quick_deaths: int) -> bool:
        """Restart the process after a growing pause; False if it is to end instead."""
        while True:
            self.restarts += 1
            self._changed(self)
            pause_s = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** max(0, quick_deaths - 1))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), pause_s)
            # `retire` ends what runs under the same lock: it never misses a process that is just starting.
            async with self._spawning:
                if self._ending.is_set():
                    return False
                try:
                    await self._spawn()
                except OSError as error:
                    self._note(f"cannot be started: {error}")
                    quick_deaths += 1
                    continue
            self.fault = None
            self._changed(self)
            return True

    def _note(self, fault: str) -> None:
        self.fault = fault
        self._log.say(f"the engine: {fault}")

    async def _end(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        if await ended(process, TERM_S):
            return
        self._log.say("the engine did not end by itself: killed")
        await kill(process)


def _describe(code: int) -> str:
    """An exit status of the guard, which gives a signal's number as 128 and more, as shells do."""
    if code < 0 or code > 128:
        number = -code if code < 0 else code - 128
        known = number in set(signal.Signals)
        return f"killed by {signal.Signals(number).name if known else f'signal {number}'}"
    return f"exit status {code}"


async def kill(process: asyncio.subprocess.Process) -> None:
    """End a process that runs under a guard, and all that it started."""
    assert process.stdin is not None
    process.stdin.close()  # the guard kills the whole group
    if not await ended(process, TERM_S):
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def ended(process: asyncio.subprocess.Process, timeout_s: float) -> bool:
    """Whether it ends within that time."""
    try:
        async with asyncio.timeout(timeout_s):
            await process.wait()
    except TimeoutError:
        return False
    return True


def _free_port(wanted: int = 0) -> int:
    """`wanted` if it is free, else any that is."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((BACKEND_HOST, port))
            found: int = probe.getsockname()[1]
            return found
    raise OSError(errno.EADDRNOTAVAIL, "no port of the loopback is free")
