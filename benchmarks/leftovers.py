"""What is left of deploys: processes, containers, leases, runs and files. Each look gives it time to go."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.killed_deploy import Deploy
from tasks.core.errors import BusyError
from tasks.core.files import PART, file_lock

PATIENCE_S = 20.0
"""A killed command's children get their signal at once; on a loaded machine they are gone a little later."""

_KINDS = {  # by a part of the command line, the first that fits
    "supervisor.py": "supervisor",  # names the guard, too
    "process_guard.py": "guard",  # names the engine, too
    "sampler.py": "sampler",
    "haproxy": "proxy",
    "llama_cpp_server.py": "engine",
}

_BUILD_STEP = re.compile(r"python3 -m venv --without-pip|python3 -c 'import sys|bin/python -I -c")
"""Commands of the containers that Docker makes for the steps of an image's build; they bear no label."""


def faults_of(deploy: Deploy, answer: Mapping[str, Any]) -> list[str]:
    """What is wrong with a home in which one service should serve, and nothing else should be."""
    home = deploy.home
    return [
        *strays(home, deploy.parts, exact=True),
        *[f"left behind: {path.relative_to(home)}" for path in sorted(home.rglob(f"*{PART}*"))],
        *[f"temporary file left: {path.name}" for path in sorted(deploy.temporary.iterdir())],
        *_held_leases(home),
        *(_unfinished_runs(deploy) if deploy.api_url else ()),
        *_service_faults(str(answer["name"]), str(answer["endpoint"])),
    ]


def strays(home: Path, parts: Mapping[str, int], *, exact: bool) -> list[str]:
    """Processes and containers beyond `parts`, counted by kind; with `exact`, those that are missing, too."""
    return _patiently(lambda: _compare(_running(home), parts, exact=exact))


def engines(home: Path) -> list[str]:
    """The engines and containers of this home."""
    running = _running(home)
    return sorted([*running.get("engine", ()), *running.get("container", ())])


@dataclass(frozen=True)
class FinishedFiles:
    """Whole files of models and candidates, and of finished environments: when each was written."""

    written: Mapping[str, tuple[int, int]]

    def changed(self, home: Path) -> list[str]:
        """Those that are gone, or are not the same file any more."""
        now = finished_files(home).written
        return [path for path, stamp in self.written.items() if now.get(path) != stamp]


def finished_files(home: Path) -> FinishedFiles:
    """The files that a deploy need not make again: those with their documents beside them."""
    documents = [
        *home.glob("locks/*.txt"),
        *home.glob("models/*/manifest.json"),
        *home.glob("candidates/*/candidate.json"),
        *home.glob("environments/*/slipway-environment.json"),
    ]
    weights = [
        path
        for document in documents
        for pattern in ("*.safetensors", "*.gguf")
        for path in document.parent.glob(pattern)
    ]
    stamps = {path: path.stat() for path in (*documents, *weights)}
    return FinishedFiles(
        {str(path.relative_to(home)): (stat.st_ino, stat.st_mtime_ns) for path, stat in stamps.items()}
    )


def _patiently(look: Callable[[], list[str]]) -> list[str]:
    deadline = time.monotonic() + PATIENCE_S
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def _compare(running: Mapping[str, list[str]], parts: Mapping[str, int], *, exact: bool) -> list[str]:
    faults = []
    for kind, lines in running.items():
        if len(lines) > parts.get(kind, 0):
            faults.append(f"{len(lines)} of kind {kind} instead of {parts.get(kind, 0)}: {'; '.join(lines)}")
    if exact:
        faults += [f"no {kind} runs" for kind in parts if kind not in running]
    return faults


def _running(home: Path) -> dict[str, list[str]]:
    """Processes and containers that belong to this home, by kind."""
    found: dict[str, list[str]] = defaultdict(list)
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            if str(home) in line or process.environ().get("SLIPWAY_HOME") == str(home):
                kind = next((kind for part, kind in _KINDS.items() if part in line), "process")
                found[kind].append(f"{process.pid} {line.replace(str(home), '~')[:200]}")
        except psutil.Error:
            continue
    for line in _containers(home):
        found["container"].append(line)
    return dict(found)


def _containers(home: Path) -> list[str]:
    """Containers labelled with a folder of this home; none where there is no Docker."""
    format_ = '{{.ID}} {{.Names}} {{.State}} {{.Label "slipway.folder"}}'
    command = ["docker", "ps", "--all", "--filter", "label=slipway.folder", "--format", format_]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout
    except FileNotFoundError:
        return []
    return [
        line.rpartition(" ")[0]
        for line in listed.splitlines()
        if line.rpartition(" ")[2].startswith(f"{home}/") or (line.endswith(" ") and _BUILD_STEP.search(line))
    ]


def _held_leases(home: Path) -> list[str]:
    held = []
    for lease in home.glob("leases/*"):
        try:
            with file_lock(lease, wait=False, holder=lease.name):
                pass
        except BusyError:
            held.append(f"lease still held: {lease.name}")
    return held


def _unfinished_runs(deploy: Deploy) -> list[str]:
    """Runs that Prefect believes to go on: one deploy at a time uses the server, and it has ended."""
    return _patiently(lambda: _living_runs(deploy))


def _living_runs(deploy: Deploy) -> list[str]:
    """Of flows only: Prefect's server records tasks from events, at times after the run that would end them."""
    wanted = {
        "state": {"type": {"any_": ["RUNNING", "PENDING"]}},
        "expected_start_time": {"after_": deploy.since.isoformat()},
    }
    # The key by which the command, too, reaches the server.
    key = base64.b64encode(os.environ["PREFECT_API_AUTH_STRING"].encode()).decode()
    runs = _post(f"{deploy.api_url}/flow_runs/filter", {"flow_runs": wanted}, Authorization=f"Basic {key}")
    return [f"a flow that never ends: {run['name']} is {run['state_name']}" for run in runs]


def _service_faults(name: str, endpoint: str) -> list[str]:
    try:
        answer = _post(f"{endpoint}/v1/completions", {"model": name, "prompt": "The", "max_tokens": 4})
    except OSError as error:
        return [f"the service does not answer: {error}"]
    return [] if answer["choices"][0]["text"] else ["the service completes nothing"]


def _post(url: str, document: Mapping[str, Any], **headers: str) -> Any:
    headers |= {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(document).encode(), headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as answer:
        return json.load(answer)
