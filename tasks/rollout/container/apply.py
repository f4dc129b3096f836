"""Services as containers behind a proxy of their own: the target `docker`.

A service that moves has two proxies until the previous one ends. Whatever the serving proxy sends no requests to
is a leftover, which the next claim sweeps.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tasks.core.errors import PortTakenError, RolloutError
from tasks.core.files import write_atomically
from tasks.core.progress import say
from tasks.core.release import Release, ServiceFolder
from tasks.core.verdicts import StageName
from tasks.engines.catalogue import get_engine
from tasks.rollout.container.inventory import Containers, Host, Inventory, Proxy, ready_slots, serving_slot
from tasks.rollout.container.models import Container
from tasks.rollout.container.plan import RELEASE_LABEL, cause_of_death, container_user, plan_container
from tasks.rollout.daemon.hang import cpu_seconds
from tasks.rollout.models import Running
from tasks.rollout.proxy.keys import Digests
from tasks.rollout.proxy.slots import BACKEND_HOST, Route, drain, folder_name, other, send_to, take_out
from tasks.rollout.recovery.models import Progress
from tasks.rollout.target import NewRelease

_POLL_S = 0.05
_PORT_TRIES = 5
_STOP_TIMEOUT_S = 10
"""From SIGTERM to SIGKILL: the engine has been drained by then."""

_SWEEP_DRAIN_S = 30.0
"""Longest wait for requests that a killed rollout left with the previous container."""

_KEPT_LOG_LINES = 2000


class ContainerService:
    """One service as containers; a `tasks.rollout.target.Target`. To change it, hold its lock."""

    def __init__(
        self, folder: ServiceFolder, containers: Containers, host: Host, image_of: Callable[[Release], str]
    ) -> None:
        self._folder = folder
        self._containers = containers
        self._host = host
        self._inventory = Inventory(folder, containers, host)
        self._image_of = image_of
        self._claimed: Proxy | None = None

    # What is there

    def running(self) -> Running | None:
        """What the serving proxy sends requests to; None without a living proxy."""
        proxy = self._inventory.serving_proxy()
        route = self._inventory.route(proxy) if proxy else None
        if proxy is None or route is None:
            return None
        live = self._inventory.live(proxy)
        container = self._inventory.container_at(live.backend_port)
        release = container.labels[RELEASE_LABEL] if container else route.release
        if live.requests is None or release is None:
            return None
        return Running(
            release=release,
            host=route.host,
            port=route.port,
            up=container is not None and container.running,
            restarts=container.restarts if container else 0,
            open_requests=live.requests,
            pid=container.pid if container else None,
            metrics_port=route.metrics_port,
            locked=proxy.locked(),
        )

    def written(self) -> Running | None:
        """What the serving proxy is to send requests to when it is started again."""
        proxy = self._inventory.serving_proxy()
        route = self._inventory.route(proxy) if proxy else None
        if route is None or route.release is None:
            return None
        return Running(release=route.release, host=route.host, port=route.port, up=False)

    def progress(self, is_silent: Callable[[str], bool]) -> Progress | None:
        """Requests as the proxy counts them, `/health`, and the container's processes; None if nothing serves."""
        proxy = self._inventory.serving_proxy()
        if proxy is None or not proxy.answers():
            return None
        slots = proxy.slots()
        if (name := serving_slot(slots, proxy.route())) is None:
            return None
        slot = slots[name]
        silent = slot.requests > 0 and is_silent(f"http://{BACKEND_HOST}:{slot.port}")
        container = self._inventory.container_at(slot.port) if silent else None
        cpu_s = cpu_seconds(container.pid) if container and container.pid else 0.0
        return Progress(requests=slot.requests, sent_bytes=slot.sent_bytes, silent=silent, cpu_s=cpu_s)

    def restart(self) -> None:
        """End the container that serves, at once, and start it again."""
        if (container := self._inventory.serving_container()) is not None:
            self._containers.restart(container.id)

    def fault(self, new: NewRelease) -> str | None:
        """How the new release died; None while it lives."""
        container = self._inventory.container_at(_port_of(new))
        return cause_of_death(container) if container else "its container was removed"

    def new_release_log(self, new: NewRelease, lines: int) -> str:
        """The end of the new release's log; kept when its container was removed."""
        return self._log_of(self._inventory.container_at(_port_of(new)), lines)

    def log_tail(self, lines: int) -> str:
        """The end of the log of what serves, or of what was removed last."""
        return self._log_of(self._inventory.serving_container(), lines)

    # What changes it

    def claim(self, host: str, port: int | None, digests: Digests = None) -> int:
        """Hold the public address with a proxy, and sweep what a killed rollout left; the port."""
        serving = self._inventory.serving_proxy()
        if serving is not None:
            self._write_down(serving)
            if (
                self._inventory.current() != serving.folder.name
            ):  # it was damaged: the next command need not search
                write_atomically(self._inventory.current_file, serving.folder.name)
        self._sweep(serving, _SWEEP_DRAIN_S)
        route = self._inventory.route(serving) if serving else None
        if serving is None or route is None or route.host != host or port not in (None, route.port):
            route = Route(host=host, port=port or self._host.free_port(host))
            serving = self._host.open_proxy(self._inventory.proxies_folder / folder_name(host, route.port))
        if not serving.answers():
            self._check_free(serving, route)
            serving.save(route)
            serving.lock(digests)
            serving.start()
        elif digests is not None and not serving.knows_keys():
            raise RolloutError(
                f"{self._folder.name} runs with a proxy of an older Slipway, which checks no keys",
                fix=f"restart it: slipway stop {self._folder.name}, then deploy again",
            )
        self._claimed = serving
        return route.port

    def lock(self, digests: Digests) -> None:
        """Have the serving proxy let in only requests with such a key; None lets in everyone."""
        proxy = self._inventory.serving_proxy()
        if proxy is None:
            raise RolloutError(f"{self._folder.name} does not run", fix=f"slipway start {self._folder.name}")
        proxy.lock(digests)

    def start(self, release: Release) -> NewRelease:
        """Start the release's container on a free port of the loopback."""
        _check_readable(release.launch.model_file)
        image = self._image_of(release)
        for _ in range(_PORT_TRIES):
            plan = plan_container(
                release,
                get_engine(release.engine),
                image=image,
                folder=self._folder.root,
                user=container_user(os.getuid(), os.getgid()),
                host_port=self._host.free_port(BACKEND_HOST),
            )
            try:
                self._containers.start(plan)
            except PortTakenError:
                continue  # someone was quicker
            return NewRelease(release=release.id, base_url=f"http://{BACKEND_HOST}:{plan.host_port}")
        raise RolloutError(
            f"no free port was found for the container in {_PORT_TRIES} tries", fix="try again"
        )

    def switch(self, new: NewRelease) -> None:
        """Give new requests to the new release; the other slot keeps those it has."""
        proxy = self._claimed_proxy()
        slot = other(serving_slot(proxy.slots(), proxy.route()))
        proxy.send((*send_to(slot, _port_of(new)), *drain([other(slot)])))
        if ready_slots(proxy.slots()) != [slot]:
            raise RolloutError(f"the proxy did not switch to {slot}")

    def settle(self, new: NewRelease, *, drain_s: float) -> None:
        """Write down what serves."""
        proxy = self._claimed_proxy()
        self._write_down(proxy)
        write_atomically(self._inventory.current_file, proxy.folder.name)

    def end_previous(self, *, drain_s: float) -> None:
        """End the previous container, and a proxy at a previous address, once they have no request left."""
        self._sweep(self._claimed_proxy(), drain_s)

    def revert(self, new: NewRelease, *, drain_s: float) -> None:
        """Give the requests back to the previous container, if there is one, and end the new one."""
        proxy = self._claimed_proxy()
        if proxy.answers():
            slots = proxy.slots()
            slot = next((name for name in ready_slots(slots) if slots[name].port == _port_of(new)), None)
            if slot and slots[other(slot)].state in ("drain", "ready"):
                proxy.send((*send_to(other(slot), slots[other(slot)].port), *drain([slot])))
                # A settle that broke off may have written the new release down: after a restart, the proxy would name
                # a container that is gone, and the next claim would end the one that serves.
                self._write_down(proxy)
        self._sweep(self._inventory.serving_proxy(), drain_s)

    def stop(self, *, drain_s: float) -> None:
        """End the proxies once their requests are done, then the containers; forget the address."""
        for proxy in self._inventory.proxies():
            proxy.stop(drain_s=drain_s)
        for container in self._inventory.containers():
            self._end(container)
        shutil.rmtree(self._inventory.proxies_folder, ignore_errors=True)

    # Parts of it

    def _check_free(self, proxy: Proxy, route: Route) -> None:
        """Raise `PortTakenError` unless nothing has the address, or this very proxy, which lost its socket."""
        try:
            self._host.check_port_free(route.host, route.port)
        except PortTakenError:
            if not proxy.lives():
                raise

    def _write_down(self, proxy: Proxy) -> None:
        """Make what the proxy does now survive a restart of it and of the container."""
        route, live = self._inventory.route(proxy), self._inventory.live(proxy)
        container = self._inventory.container_at(live.backend_port)
        if route is None or live.slot is None or container is None:
            return
        self._containers.keep_alive(container.id)
        wanted = replace(
            route, slot=live.slot, backend_port=live.backend_port, release=container.labels[RELEASE_LABEL]
        )
        if wanted != proxy.route():
            proxy.save(wanted)

    def _sweep(self, serving: Proxy | None, drain_s: float) -> None:
        """End all that does not serve, after its requests."""
        for proxy in self._inventory.proxies():
            if serving is None or proxy.folder != serving.folder:
                proxy.stop(drain_s=drain_s)
        if serving is not None and serving.answers():
            slots = serving.slots()
            kept_slot = serving_slot(slots, serving.route())
            left = [name for name, slot in slots.items() if slot.state != "maint" and name != kept_slot]
            if left:  # one that a broken-off command left ready would go on getting requests
                serving.send(drain(left))
            for slot in left:
                self._retire(serving, slot, drain_s)
        kept = self._inventory.live(serving).backend_port if serving else None
        for container in self._inventory.containers():
            if kept is None or container.host_port != kept:
                self._end(container)

    def _retire(self, proxy: Proxy, slot: str, drain_s: float) -> None:
        """Wait until nothing is in flight in a draining slot, then take it out."""
        deadline = time.monotonic() + drain_s
        while (open_requests := proxy.slots()[slot].requests) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if open_requests:
            say(StageName.ROLLOUT, f"{open_requests} requests did not end within {drain_s:g} s: closing them")
        proxy.send(take_out(slot))

    def _end(self, container: Container) -> None:
        """Remove a container, keeping the end of its log."""
        if container.running:
            self._containers.stop(container.id, timeout_s=_STOP_TIMEOUT_S)
        text = self._containers.log_tail(container.id, _KEPT_LOG_LINES)
        write_atomically(self._kept_log_file, text + "\n")
        self._containers.remove(container.id)

    def _log_of(self, container: Container | None, lines: int) -> str:
        """The end of its log; without it, of the log of what was removed last."""
        if container is not None:
            return self._containers.log_tail(container.id, lines)
        try:
            text = self._kept_log_file.read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def _claimed_proxy(self) -> Proxy:
        if self._claimed is None:
            raise RolloutError("no address was claimed for this service")
        return self._claimed

    @property
    def _kept_log_file(self) -> Path:
        return self._folder.logs / "container.log"


def _port_of(new: NewRelease) -> int:
    return int(new.base_url.rpartition(":")[2])


def _check_readable(model: Path) -> None:
    """A container never runs as root: what root deploys has to be readable for all."""
    if not model.exists():
        raise RolloutError(f"the model file {model} is gone", fix="deploy again to recreate it")
    if os.getuid() == 0 and not model.stat().st_mode & stat.S_IROTH:
        raise RolloutError(
            f"the container's user cannot read {model}", fix=f"make it readable: chmod -R a+rX {model}"
        )
