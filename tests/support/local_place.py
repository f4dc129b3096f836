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
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from prefect_http import PrefectHttp
from secret_values import SECRETS

from blocks.processes.ports import free_port

SLIPWAY = Path(sys.executable).with_name("slipway")
SYSTEM_PYTHON = "/usr/bin/python3"
"""This one's own may be below a folder of its user's alone."""

NOBODY = 65534
HELD = {**SECRETS, "SLIPWAY_PASS_ENV": "AWS_ACCESS_KEY_ID", "PYTHONPATH": ""}


@dataclass(frozen=True)
class LocalPlace:
    """`folder` is open to every user of the machine; the home in it is not."""

    folder: Path
    up: dict[str, Any] = field(default_factory=dict)
    key: str = ""

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def server(self) -> str:
        return str(self.up["server"])

    @property
    def port(self) -> str:
        return self.server.rpartition(":")[2]

    @cached_property
    def api(self) -> PrefectHttp:
        """A client of the owner's."""
        return PrefectHttp(self.server, self.key)

    def number_of_runs(self) -> int:
        """Runs that anybody ever started by a deployment, but for the scheduled ones."""
        runs = self.api.client.post("/flow_runs/filter", json={}).json()
        return sum(not run["auto_scheduled"] for run in runs)

    def slipway(self, *arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        """The command, as the owner of the home."""
        held = HELD if arguments[0] == "up" else {}
        return subprocess.run(
            [SLIPWAY, *arguments],
            env={**os.environ, **held, "SLIPWAY_HOME": str(self.home), **more},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )

    def json(self, *arguments: str | Path, **more: str) -> Any:
        """What it prints as JSON; it must succeed."""
        done = self.slipway(*arguments, "--json", **more)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@contextlib.contextmanager
def local_place() -> Iterator[LocalPlace]:
    """A place below the system's folder for temporary files: pytest's own is closed to other users anyway.

    `up` was called in a folder with a `flows/` of its own, by a process that holds secrets.
    """
    folder = Path(tempfile.mkdtemp(prefix="slipway-place-"))
    folder.chmod(0o755)
    for package in ("flows", "tasks"):
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text(
            "raise RuntimeError('the wrong package was imported')\n"
        )
    bare = LocalPlace(folder)
    try:
        up = bare.json("up", "--port", str(free_port()))
        yield LocalPlace(folder, up, bare.json("ui")["key"])
    finally:
        bare.slipway("down")
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
