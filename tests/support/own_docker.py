"""A Docker daemon of a test's own, which may be ended and started again: the machine's own stays as it is."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from waiting import wait_until

_ADDRESS = "172.31.78.1/24"


class OwnDocker:
    """The daemon and its address, `unix://…`."""

    def __init__(self, folder: Path, bridge: str) -> None:
        self.folder = folder
        self.host = f"unix://{folder / 'd.sock'}"
        self._bridge = bridge
        self._daemon: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the daemon, and wait until it answers."""
        folders = {"--data-root": "data", "--exec-root": "exec", "--pidfile": "pid"}
        options = [part for name, file in folders.items() for part in (name, str(self.folder / file))]
        network = ["--bridge", self._bridge, "--iptables=false", "--ip-masq=false"]
        with (self.folder / "log").open("ab") as log:
            self._daemon = subprocess.Popen(
                ["dockerd", *options, *network, "-H", self.host], stdout=log, stderr=log
            )
        wait_until(self._answers, f"dockerd answers: see {self.folder / 'log'}", timeout_s=60)

    def end(self) -> None:
        """End it as an upgrade of Docker does: it stops its containers first."""
        assert self._daemon is not None
        self._daemon.send_signal(signal.SIGTERM)
        self._daemon.wait(timeout=60)

    def load(self, image: str) -> None:
        """Copy an image from the machine's own daemon."""
        with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as saving:
            self._docker("load", "-q", stdin=saving.stdout)

    def remove_containers(self) -> None:
        """Remove whatever a test left."""
        listed = self._docker("ps", "-aq").split()
        if listed:
            self._docker("rm", "-f", *listed)

    def _answers(self) -> bool:
        return (
            subprocess.run(["docker", "-H", self.host, "info"], capture_output=True, check=False).returncode
            == 0
        )

    def _docker(self, *arguments: str, stdin: object = None) -> str:
        done = subprocess.run(
            ["docker", "-H", self.host, *arguments],
            stdin=stdin,
            capture_output=True,
            text=True,
            check=True,  # type: ignore[call-overload]
        )
        return str(done.stdout)


@contextlib.contextmanager
def own_docker() -> Iterator[OwnDocker]:
    """A running daemon with a network of its own; both are gone at the end. Needs root."""
    bridge = f"slip{os.getpid()}"
    folder = Path(tempfile.mkdtemp(prefix="dockerd-"))  # a short name: a socket's has 107 bytes at most
    for command in (
        ["link", "add", bridge, "type", "bridge"],
        ["addr", "add", _ADDRESS, "dev", bridge],
        ["link", "set", bridge, "up"],
    ):
        subprocess.run(["ip", *command], check=True)
    docker = OwnDocker(folder, bridge)
    try:
        docker.start()
        yield docker
        docker.remove_containers()
    finally:
        docker.end()
        subprocess.run(["ip", "link", "delete", bridge], check=True)
        shutil.rmtree(folder, ignore_errors=True)
