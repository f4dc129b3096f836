"""A real S3 for tests: OpenStack Swift with its S3 interface, four processes on the loopback."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
from botocore.config import Config
from tool_environment import UnavailableError, environment

from blocks.processes.process import guarded

LOCK_FILE = Path(__file__).with_name("swift-requirements.lock")
ACCESS_KEY, SECRET_KEY = "test:tester", "testing"
START_TIMEOUT_S = 60.0
_SERVERS = ("account", "container", "object")

_RINGS = """
import sys
from swift.common.ring import RingBuilder
folder, *ports = sys.argv[1:]
for name, port in zip(("account", "container", "object"), ports):
    builder = RingBuilder(1, 1, 1)
    builder.add_dev({"id": 0, "region": 1, "zone": 1, "weight": 1, "ip": "127.0.0.1", "port": int(port),
                     "replication_ip": "127.0.0.1", "replication_port": int(port),
                     "device": "disk", "meta": ""})
    builder.rebalance()
    builder.get_ring().save(f"{folder}/{name}.ring.gz")
"""

_BACKEND = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
workers = 0
user = {user}
fallocate_reserve = 0
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""

_PROXY = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {folder}
workers = 0
user = {user}
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck listing_formats s3api tempauth slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
s3_acl = false
[filter:slo]
use = egg:swift#slo
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {secret} .admin
"""


@dataclass(frozen=True)
class SwiftServer:
    """A running server: its address and its one user."""

    endpoint: str
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY

    def upload(self, folder: Path, bucket: str, prefix: str) -> None:
        """Put a folder's files below a prefix; the bucket is made if need be."""
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(request_checksum_calculation="when_required"),
        )
        if bucket not in [item["Name"] for item in client.list_buckets()["Buckets"]]:
            client.create_bucket(Bucket=bucket)
        for path in filter(Path.is_file, folder.rglob("*")):
            key = f"{prefix}/{path.relative_to(folder)}".lstrip("/")
            client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())


@contextlib.contextmanager
def running(folder: Path) -> Iterator[SwiftServer]:
    """The server, with its data in `folder`, until the block is left. Raises `UnavailableError`."""
    binaries = environment("swift", LOCK_FILE) / "bin"
    ports = _free_ports(4)
    (folder / "devices" / "disk").mkdir(parents=True)
    (folder / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_suffix = tests\nswift_hash_path_prefix = tests\n"
        "[storage-policy:0]\nname = one\ndefault = yes\n"
    )
    subprocess.run(
        [binaries / "python", "-W", "ignore", "-c", _RINGS, folder, *map(str, ports[1:])], check=True
    )
    user = _user()
    proxy = folder / "proxy.conf"
    proxy.write_text(_PROXY.format(port=ports[0], folder=folder, user=user, secret=SECRET_KEY))
    commands = [("proxy", proxy)]
    for name, port in zip(_SERVERS, ports[1:], strict=True):
        conf = folder / f"{name}.conf"
        conf.write_text(_BACKEND.format(name=name, port=port, folder=folder, user=user))
        commands.append((name, conf))
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(_process(binaries, name, conf, folder)) for name, conf in commands]
        _wait_for(ports, children, folder)
        yield SwiftServer(f"http://127.0.0.1:{ports[0]}")


@contextlib.contextmanager
def _process(binaries: Path, name: str, conf: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Under a process guard: it ends with the tests, however they end."""
    server = binaries / f"swift-{name}-server"
    command = [str(part) for part in (binaries / "python", "-W", "ignore", server, conf, "-v")]
    with (folder / f"{name}.log").open("wb") as log, guarded(command, stdout=log, stderr=log) as child:
        yield child


def _wait_for(ports: list[int], children: list[subprocess.Popen[bytes]], folder: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    for port in ports:
        while not _listens(port):
            if any(child.poll() is not None for child in children) or time.monotonic() > deadline:
                logs = "\n".join(log.read_text(errors="replace")[-800:] for log in folder.glob("*.log"))
                raise UnavailableError(f"OpenStack Swift did not start: {logs}")
            time.sleep(0.05)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name
