"""What there is of a service that runs as containers: its containers, its proxies, and what takes the traffic.

Below the service's folder, `proxy/` contains one folder per public address; the file `proxy/current` names the
one that serves. What takes traffic is what the serving proxy says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from tasks.core.errors import RecordError
from tasks.core.release import ServiceFolder, ServiceState
from tasks.rollout.container.models import Container, ContainerPlan
from tasks.rollout.container.plan import FOLDER_LABEL, RELEASE_LABEL
from tasks.rollout.proxy.keys import Digests
from tasks.rollout.proxy.slots import SLOTS, Route, Slot, address_in, folder_name


class Containers(Protocol):
    """What `blocks.docker.docker_engine.DockerEngine` is to a service."""

    def start(self, plan: ContainerPlan) -> Container: ...

    def keep_alive(self, container_id: str) -> None: ...

    def restart(self, container_id: str) -> None: ...

    def find(self, label: str) -> list[Container]: ...

    def log_tail(self, container_id: str, lines: int) -> str: ...

    def stop(self, container_id: str, *, timeout_s: int) -> None: ...

    def remove(self, container_id: str) -> None: ...


class Proxy(Protocol):
    """What `blocks.services.haproxy.HAProxy` is to a service."""

    @property
    def folder(self) -> Path: ...

    def route(self) -> Route | None: ...

    def save(self, route: Route) -> None: ...

    def start(self) -> None: ...

    def answers(self) -> bool: ...

    def lives(self) -> bool: ...

    def slots(self) -> dict[str, Slot]: ...

    def send(self, commands: Sequence[str]) -> None: ...

    def stop(self, *, drain_s: float) -> None: ...

    def lock(self, digests: Digests) -> None: ...

    def locked(self) -> bool: ...

    def knows_keys(self) -> bool: ...


@dataclass(frozen=True)
class Host:
    """What the target needs of this host: proxies by folder, and ports."""

    open_proxy: Callable[[Path], Proxy]
    free_port: Callable[[str], int]
    check_port_free: Callable[[str, int], None]


@dataclass(frozen=True)
class Live:
    """Where requests go now. `requests` is None if the proxy is dead."""

    slot: str | None
    backend_port: int | None
    requests: int | None


class Inventory:
    """The containers and proxies of one service. Reads, and changes nothing."""

    def __init__(self, folder: ServiceFolder, containers: Containers, host: Host) -> None:
        self._folder = folder
        self._containers = containers
        self._host = host

    @property
    def proxies_folder(self) -> Path:
        """With a folder for each public address."""
        return self._folder.root / "proxy"

    @property
    def current_file(self) -> Path:
        """Contains the name of the serving proxy's folder."""
        return self.proxies_folder / "current"

    def containers(self) -> list[Container]:
        """The service's containers, also where an older Slipway spelled the home otherwise."""
        mine = os.path.realpath(self._folder.root)
        found = self._containers.find(FOLDER_LABEL)
        return [one for one in found if os.path.realpath(one.labels[FOLDER_LABEL]) == mine]

    def container_at(self, port: int | None) -> Container | None:
        """The container that listens on that port of the loopback."""
        return next((found for found in self.containers() if found.host_port == port), None) if port else None

    def serving_container(self) -> Container | None:
        """The container that takes the traffic."""
        proxy = self.serving_proxy()
        return self.container_at(self.live(proxy).backend_port) if proxy else None

    def live(self, proxy: Proxy) -> Live:
        """Where the proxy sends requests; where it did, and no number of them, if it is dead."""
        if not proxy.answers():
            route = self.route(proxy)
            return Live(route.slot if route else None, route.backend_port if route else None, None)
        slots = proxy.slots()
        slot = serving_slot(slots, proxy.route())
        return Live(slot, slots[slot].port, slots[slot].requests) if slot else Live(None, None, 0)

    def route(self, proxy: Proxy) -> Route | None:
        """What the proxy was configured with; if that cannot be read, as its folder, it and the containers say."""
        if (written := proxy.route()) is not None:
            return written
        address = address_in(proxy.folder.name)
        if address is None:
            return None
        route = Route(host=address[0], port=address[1])
        if proxy.answers():
            slots = proxy.slots()
            slot = serving_slot(slots, None)
            container = self.container_at(slots[slot].port) if slot else None
        else:
            slot, container = SLOTS[0], self._container_of_state()
        if container is None:
            return route
        release, port = container.labels[RELEASE_LABEL], container.host_port
        return replace(route, slot=slot, backend_port=port, release=release)

    def _container_of_state(self) -> Container | None:
        """A container of the release that is written down to serve."""
        state = self._last()
        found = [one for one in self.containers() if state and one.labels[RELEASE_LABEL] == state.release]
        return next((one for one in found if one.running), found[0] if found else None)

    def serving_proxy(self) -> Proxy | None:
        """The one that `proxy/current` names; if that cannot be read, the one that sends requests somewhere."""
        if name := self.current():
            named = self._host.open_proxy(self.proxies_folder / name)
            if self.route(named):
                return named
        if (state_of := self._address()) is None:
            return None  # nothing was settled: what there is, a killed rollout left
        found = [one for one in self.proxies() if (route := self.route(one)) and route.release]
        at_address = [one for one in found if address_in(one.folder.name) == state_of]
        return next((one for one in (*at_address, *found) if one.answers()), next(iter(at_address), None))

    def current(self) -> str | None:
        """What `proxy/current` says, if that can be read and is a name."""
        try:
            name = self.current_file.read_text()
        except (OSError, ValueError):
            return None
        return name if name and Path(name).name == name else None

    def _address(self) -> tuple[str, int] | None:
        """Where the service is written down to be."""
        state = self._last()
        return (state.host, state.port) if state else None

    def _last(self) -> ServiceState | None:
        """What is written down to serve, if that can be read."""
        try:
            return self._folder.last()
        except RecordError:
            return None

    def proxies(self) -> list[Proxy]:
        """The proxies that have a folder, and the one that should have one: its process may run without it."""
        folders = {path for path in self.proxies_folder.glob("*") if path.is_dir()}
        if (address := self._address()) is not None:
            folders.add(self.proxies_folder / folder_name(*address))
        return [self._host.open_proxy(folder) for folder in sorted(folders)]


def ready_slots(slots: Mapping[str, Slot]) -> list[str]:
    """Names of the slots that get new requests."""
    return [name for name, slot in slots.items() if slot.state == "ready"]


def serving_slot(slots: Mapping[str, Slot], route: Route | None) -> str | None:
    """The ready slot; of two, which a broken-off command may leave, the one that is written down."""
    ready = ready_slots(slots)
    return route.slot if route and route.slot in ready else next(iter(ready), None)
