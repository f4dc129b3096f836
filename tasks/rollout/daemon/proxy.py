"""One public address of a service: HAProxy as a child process, which is started again when it dies.

The supervisor holds the listening sockets and hands them down: a client that connects while HAProxy restarts
waits in the kernel's queue instead of being refused, and no other process gets the port.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks.rollout.daemon.engine import ended, kill
from tasks.rollout.daemon.hang import Traffic
from tasks.rollout.daemon.logs import BoundedLog
from tasks.rollout.daemon.proxy_folder import ProxyFolder
from tasks.rollout.proxy.keys import Digests
from tasks.rollout.proxy.slots import BACKEND_HOST, QUEUE_S, Route, drain, refusals_in, send_to, take_out

START_S = 10.0
POLL_S = 0.02
PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
STEADY_S = 5.0
"""A proxy that lived this long is started again at once when it dies."""
FAILURES = 2
"""Commands in a row that fail before a proxy is replaced: one may meet a stall of the machine."""
LONGEST_REQUEST_S = 4 * 3600.0
"""The same as the configuration's `timeout server`."""
LAST_REQUESTS_S = 0.5
"""Time for answers that are still being sent to clients when the service ends."""


@dataclass(frozen=True)
class Programs:
    """What the supervisor starts: the process guard's script, and HAProxy."""

    guard: str
    haproxy: str
    queue_s: int = QUEUE_S


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; the kernel chooses port 0. Raises `OSError` if the port is taken."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    return listener


class Proxy:
    """HAProxy at one public address."""

    def __init__(
        self,
        service: Path,
        host: str,
        port: int,
        metrics_port: int | None,
        programs: Programs,
        log: BoundedLog,
        digests: Digests = None,
    ) -> None:
        """Take the address. Raises `OSError` if the port is taken."""
        self._listener = listen(host, port)
        bound: int = self._listener.getsockname()[1]
        try:
            self._metrics = listen(BACKEND_HOST, metrics_port or 0)
        except OSError:
            self._metrics = listen(BACKEND_HOST, 0)
        self.route = Route(host, bound, metrics_port=self._metrics.getsockname()[1], queue_s=programs.queue_s)
        self.digests = digests
        self._folder = ProxyFolder(service, host, bound)
        self._programs = programs
        self._log = log
        self._used: set[str] = set()
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._replaced: dict[asyncio.subprocess.Process, frozenset[str]] = {}
        """Those that still run, with the slots that may have requests in them; they take no commands."""
        self._failures = 0
        self._changing = asyncio.Lock()
        self._ending = asyncio.Event()
        self._closed = False

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return self.route.host, self.route.port

    @property
    def up(self) -> bool:
        """Whether HAProxy runs."""
        return self._process is not None and self._process.returncode is None

    @property
    def is_leaving(self) -> bool:
        """Whether it gives up its address."""
        return self._closed or self._ending.is_set()

    async def start(self) -> None:
        """Start HAProxy and keep it running. Raises `OSError` with what it printed."""
        try:
            async with self._changing:
                await self._spawn()
        except OSError:
            self._close_sockets()
            raise
        self._watch = asyncio.create_task(self._keep_running())

    async def serve(self, slot: str | None, port: int | None) -> None:
        """Give new requests to the engine at `port` of the loopback; with None to no engine."""
        async with self._changing:
            self.route = replace(self.route, slot=slot, backend_port=port)
            if slot is not None:
                self._used.add(slot)
            await self._send(self._switch(self._used))
            if not self.is_leaving:  # now, not when HAProxy starts again: the disk may be full by then
                with contextlib.suppress(OSError):
                    self._write_config()

    async def lock(self, digests: Digests) -> None:
        """Let in only requests with these keys, from the next one on. Raises `OSError`."""
        async with self._changing:
            if digests == self.digests:
                return
            before, self.digests = self.digests, digests
            try:
                self._folder.write_keys(digests)  # first: a proxy that is started again reads it
            except OSError:
                self.digests = before
                raise
            if not self.up:
                return
            try:
                await self._folder.replace_keys(digests)
            except OSError as error:
                # It may have taken the keys, or not: the next one has them.
                await self._replace(str(error) or type(error).__name__, hung=isinstance(error, TimeoutError))

    async def take_out(self, slot: str) -> None:
        """End what is left in a slot that was drained."""
        async with self._changing:
            self._used.discard(slot)
            await self._send(take_out(slot))

    async def traffic(self, slot: str | None = None) -> Traffic:
        """The requests of one slot, or of all. A dead proxy has none; a silent or replaced one may have some."""
        replaced = any(slot is None or slot in used for used in self._replaced.values())
        try:
            slots = await self._folder.slots()
        except OSError:
            return Traffic(0, 0, known=not self.up and not replaced)
        found = [each for name, each in slots.items() if slot in (None, name)]
        requests, sent_bytes = sum(each.requests for each in found), sum(each.sent_bytes for each in found)
        return Traffic(requests, sent_bytes, known=not replaced)

    async def close_door(self) -> None:
        """Accept no more connections; those that exist stay."""
        if self._closed:
            return
        self._closed = True
        self._close_sockets()  # first: what the kernel accepts for a socket without HAProxy would be reset
        with contextlib.suppress(OSError):
            await self._folder.ask("shutdown frontend service")

    async def stop(self, drain_s: float = 0.0) -> None:
        """Accept nothing more, let requests end for `drain_s`, and end HAProxy."""
        await self.close_door()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                while not (await self.traffic()).over:
                    await asyncio.sleep(POLL_S)
        self._ending.set()
        async with self._changing:
            ending = [*self._replaced]
            if self._process is not None and self.up:
                with contextlib.suppress(ProcessLookupError):
                    self._process.send_signal(signal.SIGUSR1)  # ends with its last answer
                ending.append(self._process)
            await asyncio.gather(*(_end(process, LAST_REQUESTS_S) for process in ending))
        if self._watch is not None:
            await self._watch
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._folder.remove()

    async def mend(self) -> None:
        """Replace a HAProxy that takes no commands: it hangs, or its socket was removed.

        One that took a part of its commands only, or took them late, gets them again.
        """
        async with self._changing:
            if not self.up or self.is_leaving:
                return
            try:
                slots = await self._folder.slots()
            except OSError as error:
                await self._fail(error)
                return
            self._failures = 0
            route = self.route
            ready = {name: slot.port for name, slot in slots.items() if slot.state == "ready"}
            if ready != ({route.slot: route.backend_port} if route.slot else {}):
                self._log.say(
                    f"the proxy sends requests to {ready or 'no slot'}, which is wrong: correcting it"
                )
                await self._send(self._switch(ready))

    # Below, `_changing` is held.

    def _switch(self, slots: Iterable[str]) -> tuple[str, ...]:
        """Commands that give new requests to the slot of the route, and none to these."""
        slot, port = self.route.slot, self.route.backend_port
        commands = send_to(slot, port) if slot is not None and port is not None else ()
        return *commands, *drain(sorted(set(slots) - {slot}))

    async def _fail(self, error: OSError) -> None:
        """Count a command that failed, and replace the proxy if that happens again and again. Raises `OSError`."""
        self._failures += 1
        if self._failures >= FAILURES:
            await self._replace(str(error) or type(error).__name__, hung=isinstance(error, TimeoutError))

    async def _replace(self, reason: str, *, hung: bool) -> None:
        """A new HAProxy takes over the sockets, and the old one ends with its last request. Raises `OSError`."""
        old, used = self._process, frozenset(self._used)
        assert old is not None
        self._log.say(f"the proxy does not accept commands: replacing it: {reason}")
        await self._spawn()
        self._replaced[old] = used
        with contextlib.suppress(ProcessLookupError):
            old.send_signal(signal.SIGUSR1)
        self._keep(self._end_replaced(old, START_S if hung else LONGEST_REQUEST_S))
        if self._watch is not None:
            self._watch.cancel()
        self._watch = asyncio.create_task(self._keep_running())

    async def _end_replaced(self, old: asyncio.subprocess.Process, timeout_s: float) -> None:
        await _end(old, timeout_s)
        del self._replaced[old]

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Let it run; `stop` waits for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _spawn(self) -> None:
        """Start HAProxy with the route of now, and wait until it takes commands. Raises `OSError`."""
        self._write_config()
        self._folder.drop_socket()
        sockets = (self._listener.fileno(), self._metrics.fileno())
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", self._programs.guard,
            self._programs.haproxy, "-db", "-C", str(self._folder.path), "-f", str(self._folder.config),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            pass_fds=sockets,
            env={name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ},
        )  # fmt: skip
        printed: list[bytes] = []
        reading = self._keep(self._read(process, printed))
        try:
            async with asyncio.timeout(START_S):
                while not await self._folder.answers():
                    if process.returncode is not None:
                        raise TimeoutError
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            await _end(process, 0)
            await asyncio.wait([reading], timeout=1)
            lines = b"".join(printed).decode(errors="replace").strip().splitlines()
            raise OSError(f"HAProxy did not start: {' / '.join(lines[-4:])}") from None
        self._process, self._failures = process, 0
        self._used = {self.route.slot} if self.route.slot else set()

    def _write_config(self) -> None:
        bind, metrics = self._listener.fileno(), self._metrics.fileno()
        self._folder.write(self.route, self.digests, bind=bind, metrics=metrics)

    async def _read(self, process: asyncio.subprocess.Process, printed: list[bytes]) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            if len(printed) < 20:
                printed.append(line)
            self._log.say(f"the proxy: {line.decode(errors='replace').strip()}")

    async def _keep_running(self) -> None:
        """Until it is replaced, or gives up its address."""
        pause_s = 0.0
        while True:
            assert self._process is not None
            started = time.monotonic()
            await self._process.wait()
            if time.monotonic() - started > STEADY_S:
                pause_s = 0.0
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), pause_s)
            async with self._changing:
                if self.is_leaving:
                    return
                self._log.say("the proxy exited: starting it again")
                try:
                    await self._spawn()
                except OSError as error:
                    self._log.say(str(error))
            pause_s = min(max(2 * pause_s, PAUSE_S), LONGEST_PAUSE_S)

    async def _send(self, commands: Sequence[str]) -> None:
        """A proxy that does not run needs none: it starts with the route of then. Raises `OSError`."""
        process = self._process
        while commands and self.up and self._process is process:
            try:
                refused = " / ".join(refusals_in(await self._folder.ask(";".join(commands))))
                error = OSError(refused) if refused else None
            except OSError as caught:
                error = caught
            if error is None:
                self._failures = 0
            if error is None or self.is_leaving:
                return
            await self._fail(error)

    def _close_sockets(self) -> None:
        self._listener.close()
        self._metrics.close()


async def _end(process: asyncio.subprocess.Process, timeout_s: float) -> None:
    """Wait for the end of a process; after `timeout_s` its guard kills it."""
    if not await ended(process, timeout_s):
        await kill(process)
