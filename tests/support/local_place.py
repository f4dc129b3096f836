"""A home with a server and a worker that `slipway up` started, reached as its owner and as others reach it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prefect_http import PrefectHttp

from blocks.processes.ports import free_port

SLIPWAY = Path(sys.executable).with_name("slipway")
SYSTEM_PYTHON = "/usr/bin/python3"
"""This one's own may be below a folder of its user's alone."""

NOBODY = 65534


@dataclass(frozen=True)
class LocalPlace:
    """`folder` is open to every user of the machine; the home in it is not."""

    folder: Path
    server: str
    key: str

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @cached_property
    def api(self) -> PrefectHttp:
        """A client of the owner's."""
        return PrefectHttp(self.server, self.key)

    def number_of_runs(self) -> int:
        """Runs that anybody ever started by a deployment, but for the scheduled ones."""
        runs = self.api.client.post("/flow_runs/filter", json={}).json()
        return sum(not run["auto_scheduled"] for run in runs)


def run_slipway(home: Path, *arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    """The command, as the owner of that home."""
    return subprocess.run(
        [SLIPWAY, *arguments],
        env={**os.environ, "SLIPWAY_HOME": str(home), **more},
        capture_output=True,
        text=True,
        check=False,
    )


@contextlib.contextmanager
def local_place() -> Iterator[LocalPlace]:
    """A place below the system's folder for temporary files: pytest's own is closed to other users anyway."""
    folder = Path(tempfile.mkdtemp(prefix="slipway-place-"))
    folder.chmod(0o755)
    home = folder / "home"
    try:
        started = run_slipway(home, "up", "--port", str(free_port()), "--json")
        assert started.returncode == 0, started.stderr
        shown: dict[str, Any] = json.loads(run_slipway(home, "ui", "--json").stdout)
        yield LocalPlace(folder, shown["server"], shown["key"])
    finally:
        run_slipway(home, "down")
        shutil.rmtree(folder)


def as_another_user(script: str, *arguments: str | Path) -> Any:
    """What a Python script prints as JSON when another user of this machine runs it."""
    finished = subprocess.run(
        [SYSTEM_PYTHON, "-I", "-c", script, *arguments],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        cwd="/",
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(finished.stdout)
