"""The supervisor of one service: which engine serves, which one waits to, and what survives a crash."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.rollout.daemon.engine import Command, Engine
from tasks.rollout.daemon.hang import HUNG_S, Traffic
from tasks.rollout.daemon.logs import BoundedLog, sweep_logs
from tasks.rollout.daemon.proxy import Programs, Proxy
from tasks.rollout.daemon.state import STATE_FILE, State, StateFile
from tasks.rollout.proxy.keys import Digests
from tasks.rollout.proxy.slots import BACKEND_HOST, SLOTS

LOCK_FILE = "supervisor.lock"
SHUTDOWN_DRAIN_S = 5.0

Owner = object
"""The control connection that a rollout belongs to."""


class RefusedError(Exception):
    """A request that cannot be done; `code` tells programs why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Attempt:
    """A rollout in progress. It ends with its owner's connection, unless it is settled before."""

    owner: Owner
    new: Engine | None = None
    switched: bool = False
    drain_s: float = 0.0
    claimed: Proxy | None = None
    """At an address that the service did not have before."""


class Supervisor:
    """Everything of one service that must outlive the commands which act on it."""

    def __init__(self, folder: Path, programs: Programs, *, hung_s: float = HUNG_S) -> None:
        self.folder = folder
        self.done = asyncio.Event()
        self._programs = programs
        self._hung_s = hung_s
        self._logs = folder / "logs"
        self._log = BoundedLog(self._logs / "supervisor.log", max_bytes=1 << 20)
        self._state = StateFile(folder, self._log.say)
        self._proxies: list[Proxy] = []
        """At the service's address, and at one that it comes from or goes to."""
        self._address: tuple[str, int] | None = None
        self._metrics_port: int | None = None
        self._digests: Digests = None
        """Of the keys that open the service's address."""
        self._serving: Engine | None = None
        self._engines: dict[str, Engine] = {}
        """By their slot, including those that drain."""
        self._since = 0.0
        self._attempt: Attempt | None = None
        self._complaint = ""
        self._routing = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        self._changes: set[asyncio.Task[None]] = set()
        self._present: set[Owner] = set()

    async def restore(self) -> None:
        """Bring back what served when the last supervisor of this service ended; nothing if that cannot be read."""
        state = self._state.read()
        if state is None:
            return
        self._address, self._since = state.address, state.since
        self._metrics_port, self._digests = state.metrics_port, state.digests
        engine = self._engine(state.command, restarts=state.restarts + 1)
        self._serving = engine
        await engine.resume()
        await self._listen_again()
        self._log.say(f"restored {state.command.release}")

    async def mend(self) -> None:
        """Put back what this supervisor lost: its state file, and the service's address. Raises `OSError`."""
        await self._listen_again()
        for proxy in list(self._proxies):
            await proxy.mend()
        self._state.mend()

    async def _listen_again(self) -> None:
        """The address may have been taken when this supervisor began."""
        if self._address is None or self._proxy_at(*self._address) is not None:
            return
        try:
            await self._open_proxy(*self._address, self._digests)
        except (OSError, RefusedError) as error:
            complaint = f"cannot listen on {self._address[0]}:{self._address[1]}: {error}"
            if complaint != self._complaint:
                self._log.say(complaint)
            self._complaint = complaint

    def _proxy_at(self, host: str, port: int | None) -> Proxy | None:
        for proxy in self._proxies:
            if proxy.address[0] == host and port in (None, proxy.address[1]) and not proxy.is_leaving:
                return proxy
        return None

    async def _open_proxy(self, host: str, port: int, digests: Digests) -> Proxy:
        """Raises `OSError` if the port is taken, or HAProxy does not start."""
        if any(proxy.address == (host, port) for proxy in self._proxies):
            raise RefusedError("busy", f"{host}:{port} is still being released")
        proxy = Proxy(self.folder, host, port, self._metrics_port, self._programs, self._log, digests)
        self._proxies.append(proxy)  # at once: a second look must not take the address again
        try:
            await proxy.start()
        except OSError:
            self._proxies.remove(proxy)
            raise
        await self._route()
        return proxy

    # What the control socket asks for. `owner` is the connection that asks.

    async def claim(
        self, owner: Owner, host: str, port: int | None, digests: Digests = None
    ) -> dict[str, Any]:
        """Listen on the address and, until the attempt is settled, also on the service's present one.

        A new address is locked with the keys of these digests; one that is held stays as it is.
        """
        attempt = self._own(owner)
        proxy = self._proxy_at(host, port)
        if proxy is None:
            try:
                proxy = attempt.claimed = await self._open_proxy(host, port or 0, digests)
            except OSError as error:
                code = "port_taken" if error.errno == errno.EADDRINUSE else "cannot_listen"
                raise RefusedError(code, str(error)) from error
        return {"port": proxy.address[1]}

    async def start(
        self, owner: Owner, release: str, argv: list[str], env: dict[str, str], drain_s: float
    ) -> dict[str, Any]:
        """Start a new release next to the one that serves."""
        attempt = self._own(owner)
        if attempt.new is not None:
            raise RefusedError("busy", "this rollout has started a release already")
        sweep_logs(self._logs)
        engine = self._engine(Command(release, tuple(argv), env))
        try:
            await engine.start()
        except OSError as error:
            del self._engines[engine.slot]
            raise RefusedError("cannot_start", f"cannot run {argv[0]}: {error}") from error
        attempt.new, attempt.drain_s = engine, drain_s
        return {"base_url": f"http://{BACKEND_HOST}:{engine.port}"}

    async def new_release(self, owner: Owner, lines: int) -> dict[str, Any]:
        """Whether the new release lives, and what it printed last."""
        engine = self._new_release(owner)
        return {"fault": engine.fault, "tail": engine.tail[-lines:]}

    async def switch(self, owner: Owner) -> dict[str, Any]:
        """Give new requests to the new release."""
        engine = self._new_release(owner)
        if not engine.up:
            raise RefusedError("dead", f"the new release died: {engine.fault}")
        assert self._attempt is not None
        self._attempt.switched = True
        await self._route()
        return {}

    async def settle(self, owner: Owner, drain_s: float) -> dict[str, Any]:
        """Keep the new release for good; what served before ends after its requests."""
        engine = self._new_release(owner)
        attempt = self._attempt
        assert attempt is not None
        if not engine.up or not attempt.switched:
            raise RefusedError(
                "dead", f"the new release gets no traffic: {engine.fault or 'not switched to'}"
            )
        previous, left = self._serving, self._address
        address = attempt.claimed.address if attempt.claimed else left
        assert address is not None
        self._since = time.time()
        proxy = self._proxy_at(*address)
        self._metrics_port = proxy.route.metrics_port if proxy else None
        self._digests = proxy.digests if proxy else self._digests
        self._write_state(engine, address)
        engine.settled = True
        self._serving, self._address, self._attempt = engine, address, None
        await self._route()
        if left not in (None, address):
            self._close(left, drain_s)
        if previous is not None:
            self._retire(previous, drain_s)
        self._log.say(f"{engine.command.release} serves")
        return {}

    async def revert(self, owner: Owner) -> dict[str, Any]:
        """Give the traffic back to what served before, and end the new release."""
        self._own(owner)
        if (ending := self._abandon()) is not None:
            await ending
        return {}

    async def lock(self, digests: Digests) -> dict[str, Any]:
        """Let in only requests with the keys of these digests where the service is; None lets in everyone."""
        engine, address = self._serving, self._address
        if engine is None or address is None:
            raise RefusedError("nothing", "nothing serves")
        if (proxy := self._proxy_at(*address)) is not None:
            await proxy.lock(digests)
        if digests != self._digests:
            self._digests = digests
            self._write_state(engine, address)
            self._log.say(
                f"{len(digests)} keys open the service" if digests is not None else "no key is needed"
            )
        return {}

    async def status(self) -> dict[str, Any]:
        """What takes traffic now."""
        engine = self._serving
        if engine is None or self._address is None:
            return {"release": None}
        proxy = self._proxy_at(*self._address)
        return {
            "release": engine.command.release,
            "host": self._address[0],
            "port": self._address[1],
            "up": engine.up and proxy is not None and proxy.up,
            "restarts": engine.restarts,
            "open_requests": (await engine.traffic()).requests,
            "pid": engine.pid,
            "metrics_port": proxy.route.metrics_port if proxy else None,
            "locked": self._digests is not None,
        }

    async def stop(self, owner: Owner, drain_s: float) -> dict[str, Any]:
        """End the service for good."""
        self._own(owner)
        self._state.remove()
        await self._end_all(drain_s)
        self._log.say("stopped")
        self.done.set()
        return {}

    def arrive(self, owner: Owner) -> None:
        """A client is connected and may yet ask for something."""
        self._present.add(owner)

    def hang_up(self, owner: Owner) -> None:
        """A control connection is gone, and with it whatever it has not settled."""
        self._present.discard(owner)
        if self._attempt is not None and self._attempt.owner is owner:
            self._abandon()
        self._end_if_unused()

    def _end_if_unused(self) -> None:
        """A supervisor with nothing to serve and no client connected ends."""
        if self._serving is None and not (self._present or self._attempt or self._retiring):
            self.done.set()

    async def shut_down(self) -> None:
        """End the processes, keeping in mind what served: a next supervisor brings it back."""
        await self._end_all(SHUTDOWN_DRAIN_S)
        self._log.say("shut down")

    async def _end_all(self, drain_s: float) -> None:
        self._address = None  # first: `mend` listens again where the service is
        for proxy in list(self._proxies):
            await proxy.close_door()
        self._abandon()
        serving, self._serving = self._serving, None
        await self._try_to_route()  # another request on a kept connection gets the answer that nothing serves
        if serving is not None:
            self._retire(serving, drain_s)
        if self._retiring:
            await asyncio.wait(self._retiring)
        for proxy in list(self._proxies):
            await proxy.stop()
        self._proxies.clear()

    def _own(self, owner: Owner) -> Attempt:
        if self._attempt is None:
            self._attempt = Attempt(owner)
        if self._attempt.owner is not owner:
            raise RefusedError("busy", "another rollout of this service is in progress")
        return self._attempt

    def _new_release(self, owner: Owner) -> Engine:
        new = self._own(owner).new
        if new is None:
            raise RefusedError("no_new_release", "no new release was started")
        return new

    def _abandon(self) -> asyncio.Task[None] | None:
        """End the attempt; what there is to wait for until its new release is gone."""
        attempt, self._attempt = self._attempt, None
        if attempt is None:
            return None
        self._route_soon()
        if attempt.claimed:
            self._close(attempt.claimed.address, 0.0)
        return self._retire(attempt.new, attempt.drain_s) if attempt.new else None

    def _engine(self, command: Command, restarts: int = 0) -> Engine:
        slot = next((slot for slot in SLOTS if slot not in self._engines), None)
        if slot is None:
            raise RefusedError("busy", f"{len(SLOTS) - 1} previous releases still answer requests")
        engine = self._engines[slot] = Engine(
            command,
            slot,
            look=self._traffic,
            guard=self._programs.guard,
            logs=self._logs,
            changed=self._engine_changed,
            restarts=restarts,
            hung_s=self._hung_s,
        )
        return engine

    async def _traffic(self, slot: str) -> Traffic:
        """What all proxies have for the engine in a slot."""
        found = [await proxy.traffic(slot) for proxy in list(self._proxies)]
        requests, sent_bytes = sum(one.requests for one in found), sum(one.sent_bytes for one in found)
        return Traffic(requests, sent_bytes, known=all(one.known for one in found))

    def _engine_changed(self, engine: Engine) -> None:
        """An engine died, or was started again."""
        attempt = self._attempt
        if attempt is not None and attempt.new is engine and not engine.up:
            attempt.switched = False
        self._log.say(f"{engine.command.release}: {engine.fault or 'runs'}, {engine.restarts} restarts")
        self._route_soon()
        if engine is self._serving and self._address is not None:
            try:
                self._write_state(engine, self._address)
            except OSError as error:
                self._log.say(f"cannot write {STATE_FILE}: {error}")

    async def _route(self) -> None:
        """New requests go to the new release once it is switched to, else to what serves.

        They do so while that is started again: the proxy tries until it listens, or their time is over.
        """
        async with self._routing:
            attempt = self._attempt
            engine = attempt.new if attempt and attempt.switched else self._serving
            slot, port = (engine.slot, engine.port) if engine else (None, None)
            for proxy in list(self._proxies):
                if (proxy.route.slot, proxy.route.backend_port) != (slot, port):
                    await proxy.serve(slot, port)

    def _retire(self, engine: Engine, drain_s: float) -> asyncio.Task[None]:
        return self._leave(self._end_engine(engine, drain_s))

    async def _end_engine(self, engine: Engine, drain_s: float) -> None:
        await self._try_to_route()  # first: a request that it still gets would be cut
        await engine.retire(drain_s)
        for proxy in list(self._proxies):
            with contextlib.suppress(OSError):
                await proxy.take_out(engine.slot)
        del self._engines[engine.slot]

    def _close(self, address: tuple[str, int] | None, drain_s: float) -> None:
        """Give up an address: its connections have `drain_s` to finish."""
        for proxy in [proxy for proxy in self._proxies if proxy.address == address]:
            self._leave(self._end_proxy(proxy, drain_s))

    async def _end_proxy(self, proxy: Proxy, drain_s: float) -> None:
        await proxy.stop(drain_s)
        if proxy in self._proxies:
            self._proxies.remove(proxy)

    def _leave(self, ending: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(ending)
        self._retiring.add(task)
        task.add_done_callback(self._left)
        return task

    def _left(self, task: asyncio.Task[None]) -> None:
        self._retiring.discard(task)
        self._end_if_unused()

    def _route_soon(self) -> None:
        """From a callback; the task is kept until it is done."""
        task = asyncio.create_task(self._try_to_route())
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)

    async def _try_to_route(self) -> None:
        try:
            await self._route()
        except OSError as error:
            self._log.say(f"the proxy cannot be told where to send requests: {error}")

    def _write_state(self, engine: Engine, address: tuple[str, int]) -> None:
        self._state.write(
            State(engine.command, *address, engine.restarts, self._since, self._metrics_port, self._digests)
        )
