"""A real MLflow tracking server for tests: as it is by default, and with an experiment whose artifacts are in a folder."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from tool_environment import UnavailableError, environment

from blocks.processes.ports import free_port
from blocks.processes.process import guarded

LOCK_FILE = Path(__file__).with_name("mlflow-requirements.lock")
START_TIMEOUT_S = 180.0
"""It imports for ten seconds, longer on a busy machine, and makes its tables first."""


@dataclass(frozen=True)
class MlflowServer:
    """A running server's address. What its own client would ask for is asked for over HTTP: the client imports for
    seconds."""

    url: str
    store: Path
    """Where the server keeps artifacts that only it gives."""
    experiment: str = "0"

    def register(self, name: str, *folders: Path, proxied: bool = False) -> None:
        """A registered model with a version for each folder, from 1 on, logged as the artifacts of a run; `proxied`:
        where only the server reads them."""
        self._ask("registered-models/create", name=name)
        for folder in folders:
            run = self._ask("runs/create", experiment_id="0" if proxied else self.experiment)["run"]["info"]
            path = urlsplit(run["artifact_uri"]).path
            shutil.copytree(folder, (self.store / path.lstrip("/") if proxied else Path(path)) / "model")
            source = f"{run['artifact_uri']}/model" if proxied else f"{path}/model"
            self._ask("model-versions/create", name=name, source=source, run_id=run["run_id"])

    def point(self, name: str, alias: str, version: int) -> None:
        """Promote a version."""
        self._ask("registered-models/alias", name=name, alias=alias, version=str(version))

    def in_a_folder(self, folder: Path) -> MlflowServer:
        """The same, for models whose artifacts are in that folder."""
        made = self._ask("experiments/create", name="in a folder", artifact_location=str(folder))
        return replace(self, experiment=made["experiment_id"])

    def _ask(self, path: str, **content: str) -> Any:
        answer = httpx.post(f"{self.url}/api/2.0/mlflow/{path}", json=content)
        answer.raise_for_status()
        return answer.json()


@contextlib.contextmanager
def running(folder: Path) -> Iterator[MlflowServer]:
    """The server, with its data in `folder`, until the block is left. Raises `UnavailableError`."""
    binaries = environment("mlflow", LOCK_FILE) / "bin"
    port = free_port("127.0.0.1")
    command = [
        str(binaries / "mlflow"),
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    store = folder / "artifacts"
    command += ["--artifacts-destination", str(store)]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    log = folder / "mlflow.log"
    with log.open("wb") as out, guarded(command, stdout=out, stderr=out, env=quiet, cwd=folder) as child:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url, child, log)
        yield MlflowServer(url, store).in_a_folder(folder / "direct")


def _wait_for(url: str, child: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health").status_code == httpx.codes.OK:
                return
        if child.poll() is not None or time.monotonic() > deadline:
            raise UnavailableError(f"MLflow did not start: {log.read_text(errors='replace')[-800:]}")
        time.sleep(0.1)
