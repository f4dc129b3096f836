"""What runs for a service: for the sampler a document, for the health check its state and memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from blocks.services.targets import open_target
from tasks.core.frozen import Frozen
from tasks.core.release import ServiceFolder, ServiceState
from tasks.core.settings import Settings
from tasks.engines.card import Metrics
from tasks.health.models import ProcessSample
from tasks.leaks import daemon
from tasks.rollout.models import Running

_CONTAINER = re.compile(r"[0-9a-f]{64}")


class ServiceProcesses(Frozen):
    """The document `processes.json` in a service's folder: what the leak sampler samples, and how often.

    `supervised` asks the service's supervisor for the engine, whenever it was started; `container` follows a
    container through its restarts by its cgroup; `process` names roots of process trees for good. The engine counts
    its work in `work`, by the metrics `work_counters` at `metrics_path`.
    """

    kind: Literal["supervised", "container", "process"]
    socket: Path | None = None
    id: str | None = None
    pids: tuple[int, ...] = ()
    endpoint: str | None = None
    period_s: float = Field(60.0, gt=0)
    work: Literal["requests", "tokens"] = "requests"
    work_counters: tuple[str, ...] = ()
    metrics_path: str = "/metrics"


def processes_of(
    folder: ServiceFolder,
    state: ServiceState,
    running: Running | None,
    *,
    period_s: float,
    metrics: Metrics | None = None,
) -> ServiceProcesses:
    """How to find this service's processes, and the engine's own counters of its work, from now on."""
    frame: dict[str, Any] = {"endpoint": state.endpoint, "period_s": period_s}
    if metrics:
        frame |= {"work": metrics.work, "work_counters": metrics.work_counters, "metrics_path": metrics.path}
    if not state.target.in_image:
        return ServiceProcesses(kind="supervised", socket=folder.control_socket, **frame)
    pids = (running.pid,) if running is not None and running.pid is not None else ()
    container = next((found for pid in pids if (found := container_of(pid)) is not None), None)
    if container is not None:
        return ServiceProcesses(kind="container", id=container, **frame)
    return ServiceProcesses(kind="process", pids=pids, **frame)


def container_of(pid: int) -> str | None:
    """Id of the container that a process belongs to, read from its cgroup."""
    try:
        found = _CONTAINER.findall(Path(f"/proc/{pid}/cgroup").read_text())
    except OSError:
        return None
    return found[-1] if found else None


def running_service(folder: ServiceFolder, state: ServiceState) -> Running | None:
    """What takes the service's traffic now; None if nothing does."""
    with open_target(state.target, folder, Settings.load()) as target:
        return target.running()


def sample_processes(folder: ServiceFolder, state: ServiceState) -> ProcessSample:
    """Whether the service's engine lives, how often it was restarted, and its memory."""
    running = running_service(folder, state)
    if running is None:
        return ProcessSample(alive=False)
    container = container_of(running.pid) if running.pid is not None and state.target.in_image else None
    sample = None
    if container is not None:
        sample = daemon.measure_cgroup(container)
    elif running.pid is not None:
        sample = daemon.measure_trees([running.pid])
    return ProcessSample(
        alive=running.up,
        restarts=running.restarts,
        open_requests=running.open_requests,
        memory_bytes=sample.bytes if sample else None,
    )
