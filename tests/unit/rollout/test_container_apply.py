"""A container service whose rollout breaks off between two writes: Docker and HAProxy are fakes, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from releases import make_release

from tasks.core.release import Release, ServiceFolder
from tasks.rollout.container import apply
from tasks.rollout.container.apply import ContainerService
from tasks.rollout.container.inventory import Host
from tasks.rollout.container.models import Container, ContainerPlan
from tasks.rollout.proxy.keys import Digests
from tasks.rollout.proxy.slots import SLOTS, Route, Slot


@dataclass
class FakeContainers:
    """Containers by their id, which is their port."""

    there: dict[str, Container] = field(default_factory=dict)

    def start(self, plan: ContainerPlan) -> Container:
        container = Container(
            id=str(plan.host_port), name=plan.name, status="running", labels=plan.labels, host_port=plan.host_port
        )  # fmt: skip
        self.there[container.id] = container
        return container

    def keep_alive(self, container_id: str) -> None:
        assert container_id in self.there

    def find(self, label: str) -> list[Container]:
        return list(self.there.values())

    def log_tail(self, container_id: str, lines: int) -> str:
        return ""

    def stop(self, container_id: str, *, timeout_s: int) -> None:
        pass

    def remove(self, container_id: str) -> None:
        del self.there[container_id]


@dataclass
class FakeProxy:
    """Understands the commands of a switch, and starts with the route that was saved last."""

    folder: Path
    saved: Route | None = None
    alive: bool = False
    digests: Digests = None
    now: dict[str, Slot] = field(default_factory=dict)

    def route(self) -> Route | None:
        return self.saved

    def save(self, route: Route) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.saved = route

    def start(self) -> None:
        assert self.saved is not None
        self.alive = True
        self.now = {
            slot: Slot(state="ready", port=self.saved.backend_port or 1)
            if slot == self.saved.slot
            else Slot(state="maint", port=1)
            for slot in SLOTS
        }

    def answers(self) -> bool:
        return self.alive

    def slots(self) -> dict[str, Slot]:
        return self.now

    def send(self, commands: Sequence[str]) -> None:
        for command in commands:
            _, _, server, what, *value = command.split()
            name, now = server.partition("/")[2], self.now[server.partition("/")[2]]
            self.now[name] = (
                replace(now, port=int(value[-1])) if what == "addr" else replace(now, state=value[0])
            )

    def stop(self, *, drain_s: float) -> None:
        self.alive = False

    def lock(self, digests: Digests) -> None:
        self.digests = digests

    def locked(self) -> bool:
        return self.digests is not None

    def knows_keys(self) -> bool:
        return True


class Docked:
    """One service's containers and proxy; each command has a `ContainerService` of its own."""

    def __init__(self, folder: ServiceFolder) -> None:
        self.folder = folder
        self.containers = FakeContainers()
        self.proxies: dict[Path, FakeProxy] = {}
        self._ports = iter(range(4000, 5000))

    def service(self) -> ContainerService:
        host = Host(
            open_proxy=lambda folder: self.proxies.setdefault(folder, FakeProxy(folder)),
            free_port=lambda host: next(self._ports),
            check_port_free=lambda host, port: None,
        )
        return ContainerService(self.folder, self.containers, host, lambda release: "image")

    @property
    def proxy(self) -> FakeProxy:
        (proxy,) = self.proxies.values()
        return proxy

    def serving(self) -> str | None:
        running = self.service().running()
        return running.release if running else None

    def left(self) -> list[str]:
        return [container.labels[apply.RELEASE_LABEL] for container in self.containers.there.values()]


@pytest.fixture
def releases(tmp_path: Path) -> tuple[Release, Release]:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"weights")
    gguf.chmod(0o644)
    previous, wanted = (make_release(tmp_path / "bin" / "python", gguf, batch=batch) for batch in (1, 2))
    return previous, wanted


@pytest.fixture
def docked(tmp_path: Path, releases: tuple[Release, Release]) -> Docked:
    """The previous release serves."""
    docked = Docked(ServiceFolder(tmp_path / "services", "chat"))
    deploy(docked, releases[0])
    return docked


def deploy(docked: Docked, release: Release) -> None:
    service = docked.service()
    service.claim("127.0.0.1", 8000)
    new = service.start(release)
    service.switch(new)
    service.settle(new, drain_s=0)
    service.end_previous(drain_s=0)


def test_a_settled_switch_leaves_the_former_container_until_it_is_ended(
    docked: Docked, releases: tuple[Release, Release]
) -> None:
    previous, wanted = releases
    service = docked.service()
    service.claim("127.0.0.1", 8000)
    new = service.start(wanted)
    service.switch(new)
    service.settle(new, drain_s=0)
    assert (docked.serving(), docked.left()) == (wanted.id, [previous.id, wanted.id])
    service.end_previous(drain_s=0)
    assert (docked.serving(), docked.left()) == (wanted.id, [wanted.id])


def test_what_is_taken_back_is_served_also_by_a_proxy_that_starts_anew(
    docked: Docked, releases: tuple[Release, Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    previous, wanted = releases
    service = docked.service()
    service.claim("127.0.0.1", 8000)
    new = service.start(wanted)
    service.switch(new)
    with monkeypatch.context() as patched:
        patched.setattr(apply, "write_atomically", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            service.settle(new, drain_s=0)
    route = docked.proxy.route()
    assert route is not None
    assert route.release == wanted.id
    service.revert(new, drain_s=0)
    docked.proxy.alive = False
    docked.service().claim("127.0.0.1", 8000)
    assert (docked.serving(), docked.left()) == (previous.id, [previous.id])


@pytest.mark.parametrize("how", ["killed", "taken back"])
@pytest.mark.parametrize("run", [1, 2])
def test_a_switch_that_the_proxy_ran_in_part_leaves_the_previous_release(
    docked: Docked, releases: tuple[Release, Release], monkeypatch: pytest.MonkeyPatch, run: int, how: str
) -> None:
    wanted, previous = releases
    deploy(docked, previous)  # into the second slot
    service = docked.service()
    service.claim("127.0.0.1", 8000)
    new = service.start(wanted)
    send = FakeProxy.send

    def breaks_off(proxy: FakeProxy, commands: Sequence[str]) -> None:
        send(proxy, commands[:run])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(FakeProxy, "send", breaks_off)
        with pytest.raises(KeyboardInterrupt):
            service.switch(new)
    if how == "killed":
        docked.service().claim("127.0.0.1", 8000)
    else:
        service.revert(new, drain_s=0)
    assert (docked.serving(), docked.left()) == (previous.id, [previous.id])
    ready = [slot.port for slot in docked.proxy.slots().values() if slot.state == "ready"]
    assert [str(port) for port in ready] == list(docked.containers.there)


def _interrupted(path: Path, content: str) -> None:
    raise KeyboardInterrupt


def test_containers_of_a_home_that_was_spelled_otherwise_are_the_services(
    docked: Docked, releases: tuple[Release, Release], tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(docked.folder.root.parent)
    (tmp_path / "other").mkdir()
    seen = []
    for services in (tmp_path / "link", tmp_path / "other"):
        docked.folder = ServiceFolder(services, docked.folder.name)
        seen.append([one.id for one in docked.service()._inventory.containers()])
    assert seen == [[one.id for one in docked.containers.there.values()], []]
    assert seen[0]
