"""The local server, worker and deployments: what `slipway up` starts and `slipway down` ends."""

from __future__ import annotations

import contextlib
import os
import sys
from datetime import timedelta
from pathlib import Path

import psutil
import yaml

from blocks.prefect.server import (
    api_url,
    guard_environment,
    keeps_own_database,
    ready_own_database,
    server_command,
    server_environment,
    start_detached,
)
from blocks.prefect.settings import check_settings, forget_other_servers
from blocks.processes.ports import LOCALHOST, check_port_free, free_port, is_free
from blocks.processes.process import run
from blocks.processes.started_process import StartedProcess
from deployments.local_processes import WORKER, LocalProcess, local_processes
from deployments.local_state import (
    LocalState,
    read_local_state,
    server_log,
    state_file,
    wait_for_server,
    write_local_state,
)
from tasks.core.child_environment import WORKER_NEEDS, Needs, passed_on
from tasks.core.digests import digest_of_file
from tasks.core.errors import PortTakenError, SlipwayError
from tasks.core.files import check_writable, file_lock, write_atomically
from tasks.core.home import make_home
from tasks.core.progress import say
from tasks.core.settings import Settings

PREFECT_FILE = Path(__file__).with_name("prefect.yaml")
DEFAULT_PORT = 4200
HEARTBEAT = timedelta(seconds=30)
STOP_TIMEOUT_S = 20.0
REGISTER_TIMEOUT_S = 300.0


def start(settings: Settings, port: int | None) -> LocalState:
    """Start whatever does not run yet; running processes are kept, if they require this home's key.

    Raises `DiskError` if the home is not writable.
    """
    make_home(settings.home)
    check_writable(settings.home)
    forget_other_servers(os.environ)
    with file_lock(settings.leases / "local.lock", wait=True, holder="the local server"):
        state = read_local_state(settings)
        for stray in _strays(settings, state):
            _end(stray.process)
        if state is not None and _is_ours(settings, state):
            write_local_state(settings, state)
        else:
            _end(state.worker if state else None)  # it would keep asking a server that is gone
            _end(state.server if state else None)  # it is open to other users, or uses a damaged database
            state = _start_server(settings, port)
            wait_for_server(settings, state)
        os.environ.update(server_environment(settings, state.api_url))
        _register(settings, state)
        _see_to_notifications()
        if state.worker is None and keeps_own_database(settings):  # none has taken a run from this server yet
            _end_killed_runs()
        if state.worker is None or state.worker.find() is None:
            state = state.model_copy(update={"worker": _start_worker(settings, state)})
            write_local_state(settings, state)
    return state


def stop(settings: Settings) -> list[str]:
    """End worker and server; services keep running. What was ended. Raises `SlipwayError` if one does not end."""
    with file_lock(settings.leases / "local.lock", wait=True, holder="the local server"):
        state = read_local_state(settings)
        processes = [("worker", state.worker), ("server", state.server)] if state is not None else []
        processes += [(stray.name, stray.process) for stray in _strays(settings, state)]
        processes.sort(key=lambda named: named[0], reverse=True)  # a worker's runs still report to the server
        ended = [name for name, process in processes if _end(process)]
        for name, process in processes:
            if process is not None and process.find() is not None:
                raise SlipwayError(
                    f"the local {name} did not end", fix=f"end process {process.pid}, then: slipway down"
                )
        state_file(settings).unlink(missing_ok=True)
    return list(dict.fromkeys(ended))


def _strays(settings: Settings, state: LocalState | None) -> list[LocalProcess]:
    """Servers and workers of this home that the state does not name, for example after an interrupted start."""
    known = (state.worker, state.server) if state is not None else ()
    return [local for local in local_processes(settings.home) if local.process not in known]


def deployment_names() -> list[str]:
    """Full names of the registered deployments, as `prefect deployment run` expects them."""
    from prefect import get_client

    with get_client(sync_client=True) as client:
        flows = {flow.id: flow.name for flow in client.read_flows()}
        return sorted(f"{flows[found.flow_id]}/{found.name}" for found in client.read_deployments())


def _is_ours(settings: Settings, state: LocalState) -> bool:
    """Whether the server has a sound database, accepts this home's key, and refuses requests without it."""
    if not state.alive:
        return False
    try:
        wait_for_server(settings, state)
    except SlipwayError as error:
        say("server", f"restarting: {error.what}")
        return False
    return True


def _start_server(settings: Settings, port: int | None) -> LocalState:
    wanted = port or (DEFAULT_PORT if is_free(LOCALHOST, DEFAULT_PORT) else free_port())
    try:
        check_port_free(LOCALHOST, wanted)
    except PortTakenError as error:
        raise PortTakenError(error.what, fix="choose another: slipway up --port N") from None
    url = api_url(wanted)
    ready_own_database(settings)
    os.environ.update(server_environment(settings, url))
    check_settings()
    say("server", f"starting at {url.removesuffix('/api')}")
    pid = start_detached(
        server_command(wanted),
        needs=(Needs.PREFECT_SERVER,),
        env=guard_environment(settings, url),
        log=server_log(settings),
    )
    state = LocalState(api_url=url, server=StartedProcess.of(pid))
    write_local_state(settings, state)  # before the wait: `down` finds it even if this process is killed
    return state


def _register(settings: Settings, state: LocalState) -> None:
    """Deployments, pool and automations; skipped if this server has had them from exactly this file."""
    marker = settings.prefect_home / "registered"
    registered = f"{state.server.model_dump_json()} {digest_of_file(PREFECT_FILE)}"
    if marker.exists() and marker.read_bytes() == registered.encode():
        return
    say("deployments", "registering")
    from blocks.prefect.bootstrap import create_automations, create_work_pool, remove_old_deployments

    create_work_pool()
    create_automations(HEARTBEAT)
    prefect = Path(sys.executable).with_name("prefect")
    command = (prefect, "--no-prompt", "deploy", "--prefect-file", PREFECT_FILE, "--all")
    # From an empty folder: a folder with its own `flows/` would come first on the import path.
    finished = run(
        command, timeout_s=REGISTER_TIMEOUT_S, needs=(Needs.PREFECT_CLIENT,), cwd=settings.prefect_home
    )
    finished.check("registering the deployments", fix="read the output below; the server keeps running")
    remove_old_deployments(flow_names())
    write_atomically(marker, registered)


def flow_names() -> list[str]:
    """Names of the flows that `prefect.yaml` deploys."""
    return [deployment["name"] for deployment in yaml.safe_load(PREFECT_FILE.read_bytes())["deployments"]]


def _see_to_notifications() -> None:
    """Every time, because the block may have been created or removed since the deployments were registered."""
    from blocks.prefect.bootstrap import tell_of_verdicts

    if count := tell_of_verdicts():
        say("server", f"verdicts that say no are reported by {count} notification block{'s'[: count != 1]}")


def _end_killed_runs() -> None:
    """Mark runs of an earlier server's worker as crashed that ran, or were due, when the machine lost power."""
    from blocks.prefect.bootstrap import WORK_POOL
    from blocks.prefect.stale_runs import end_runs_of_pool

    if killed := end_runs_of_pool(WORK_POOL):
        say("worker", f"{killed} run{'s'[: killed != 1]} of an earlier server marked as crashed")


def _start_worker(settings: Settings, state: LocalState) -> StartedProcess:
    from blocks.prefect.bootstrap import WORK_POOL

    say("worker", "starting")
    prefect = str(Path(sys.executable).with_name("prefect"))
    environment = {
        **server_environment(settings, state.api_url),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(int(HEARTBEAT.total_seconds())),
        "PREFECT_LOGGING_EXTRA_LOGGERS": "slipway",
    }
    command = (prefect, "worker", "start", "--pool", WORK_POOL, "--type", "process", "--name", WORKER)
    pid = start_detached(
        command,
        needs=(*WORKER_NEEDS, *passed_on(os.environ)),
        env=environment,
        log=settings.home / "logs" / "worker.log",
    )
    return StartedProcess.of(pid)


def _end(started: StartedProcess | None) -> bool:
    """End a process and its children, with SIGTERM, then SIGKILL; whether it existed."""
    process = started.find() if started else None
    if process is None:
        return False
    children: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        children = process.children(recursive=True)
        process.terminate()
    _, alive = psutil.wait_procs([process, *children], timeout=STOP_TIMEOUT_S)
    for straggler in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            straggler.kill()
    psutil.wait_procs(alive, timeout=STOP_TIMEOUT_S)
    return True
