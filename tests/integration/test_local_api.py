"""The door of `slipway up`: who gets in, and what others on the machine can do and read."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from local_place import LocalPlace, as_another_user, local_place, run_slipway
from uncovered import uncovered
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin, Subprotocol

from blocks.storage.object_storage import ObjectStorage

pytestmark = pytest.mark.server

PREFECT = Path(sys.executable).with_name("prefect")


@pytest.fixture(scope="module")
def place() -> Iterator[LocalPlace]:
    with uncovered(), local_place() as made:
        yield made


def environment_of(folder: Path) -> tuple[Path, Path]:
    """An environment whose Python writes a file, and that file."""
    proof, python = folder / "proof", folder / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(f"#!/bin/sh\nid > {proof}\n")
    python.chmod(0o755)
    return python.parent.parent, proof


def basic(key: str) -> str:
    return f"Basic {base64.b64encode(key.encode()).decode()}"


CALLERS = {
    "without a key": ({}, 401),
    "with another key": ({"Authorization": basic("slipway:guessed")}, 401),
    "with half of the key": ({"Authorization": "Basic HALF"}, 401),
    "by another host's name": ({"Authorization": "KEY", "Host": "evil.example"}, 400),
    "by another host's name that begins alike": (
        {"Authorization": "KEY", "Host": "127.0.0.1.evil.example"},
        400,
    ),
    "from another origin": ({"Authorization": "KEY", "Origin": "http://evil.example"}, 403),
    "from another port": ({"Authorization": "KEY", "Origin": "http://127.0.0.1:1"}, 403),
    "from an origin that is not an address": ({"Authorization": "KEY", "Origin": "http://[::1"}, 403),
    "from a page without an origin": ({"Authorization": "KEY", "Origin": "null"}, 403),
}


@pytest.mark.parametrize("caller", list(CALLERS))
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/deployments/DEPLOYMENT/create_flow_run"),
        ("POST", "/deployments/filter"),
        ("POST", "/flows/"),
        ("GET", "/admin/settings"),
        ("GET", "/deployments/DEPLOYMENT"),
        ("DELETE", "/deployments/DEPLOYMENT"),
        ("OPTIONS", "/flows/"),
    ],
)
def test_the_api_refuses(place: LocalPlace, caller: str, method: str, path: str, tmp_path: Path) -> None:
    headers, status = CALLERS[caller]
    if method == "OPTIONS":  # what a browser asks before it sends what a form could not
        headers = {
            **headers,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
        }
    meant = {
        name: value.replace("KEY", basic(place.key)).replace("HALF", basic(place.key)[6:30])
        for name, value in headers.items()
    }
    environment, proof = environment_of(tmp_path)
    body = {"parameters": {"request": {"environment": {"manager": "system", "path": str(environment)}}}}
    before = place.number_of_runs()
    address = (
        f"{place.server}/api{path.replace('DEPLOYMENT', place.api.deployment('build-environment')['id'])}"
    )
    answer = httpx.request(method, address, headers=meant, json=body, trust_env=False)
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers
    assert place.number_of_runs() == before
    assert not proof.exists()


@pytest.mark.parametrize(
    ("origin", "token"),
    [(None, None), (None, "slipway:guessed"), ("http://evil.example", "KEY"), ("http://127.0.0.1:1", "KEY")],
    ids=["without a key", "with another key", "from another origin", "from another port"],
)
@pytest.mark.parametrize("path", ["events/in", "events/out", "logs/out", "task_runs/subscriptions/scheduled"])
def test_a_web_socket_is_refused(place: LocalPlace, path: str, origin: str | None, token: str | None) -> None:
    with pytest.raises((ConnectionClosed, InvalidStatus)):
        first_answer(
            f"{place.server.replace('http', 'ws')}/api/{path}",
            origin,
            token and token.replace("KEY", place.key),
        )


def first_answer(address: str, origin: str | None, token: str | None) -> str | bytes:
    """What the server says to a client that gives that token."""
    named = Origin(origin) if origin else None
    with connect(address, subprotocols=[Subprotocol("prefect")], origin=named, proxy=None) as socket:
        socket.send(json.dumps({"type": "auth", "token": token}))
        return socket.recv(timeout=30)


def test_a_web_socket_with_the_key_is_taken(place: LocalPlace) -> None:
    answer = first_answer(f"{place.server.replace('http', 'ws')}/api/events/out", None, place.key)
    assert json.loads(answer) == {"type": "auth_success"}


ATTACK = """
import json, os, sys, urllib.error, urllib.request
address, folder = sys.argv[1:]
said = []
def call(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data=data, headers={"Content-Type": "application/json"})
    try:
        return json.load(urllib.request.urlopen(request, timeout=30))
    except urllib.error.HTTPError as error:
        said.append(error.code)
found = call("/deployments/name/build-environment/build-environment") or {"id": sys.argv[0]}
environment = {"manager": "system", "path": folder}
call(f"/deployments/{found['id']}/create_flow_run", {"parameters": {"request": {"environment": environment}}})
call("/block_documents/filter", {"include_secrets": True})
call("/flows/", {"name": "check-health"})
print(json.dumps({"user": os.getuid(), "said": said}))
"""

READ = """
import json, os, pathlib, sys
place, home, *names = sys.argv[1:]
seen, read = os.listdir(place), []
for name in names:
    try:
        (os.listdir if os.path.isdir(name) else open)(name)
        read.append(name)
    except PermissionError:
        pass
lines = []
for process in pathlib.Path("/proc").glob("[0-9]*"):
    for kind in ("cmdline", "environ"):
        try:
            lines.append((process / kind).read_bytes().decode(errors="replace"))
        except OSError:
            pass
print(json.dumps({"user": os.getuid(), "seen": seen, "read": read, "lines": lines}))
"""


@pytest.mark.another_user
def test_another_user_starts_nothing(place: LocalPlace, tmp_path: Path) -> None:
    environment, proof = environment_of(place.folder)
    before = place.number_of_runs()
    done = as_another_user(ATTACK, f"{place.server}/api", environment)
    assert done == {"user": 65534, "said": [401, 401, 401, 401]}
    assert place.number_of_runs() == before
    assert not proof.exists()


@pytest.mark.another_user
def test_another_user_reads_nothing(place: LocalPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what is kept, nor the key from what runs."""
    block = subprocess.run(
        [sys.executable, "-c", f"from {ObjectStorage.__module__} import ObjectStorage\n"
         "ObjectStorage(access_key='AK', secret_key='kept-in-a-block').save('kept', overwrite=True)"],
        env={**os.environ, "PREFECT_API_URL": f"{place.server}/api", "PREFECT_API_AUTH_STRING": place.key},
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert block.returncode == 0, block.stderr
    kept = [place.home, *place.home.rglob("*")]
    assert {"prefect.db", "api-key", "server.log", "worker.log", "open-ui.html"} <= {
        path.name for path in kept
    }
    done = as_another_user(READ, place.folder, place.home, *kept)
    assert done["user"] == 65534
    assert "home" in done["seen"]
    assert done["read"] == []
    assert len(done["lines"]) > 10
    secret = place.key.partition(":")[2]
    assert not [line for line in done["lines"] if secret in line or basic(place.key) in line]


def test_what_is_confidential_is_closed_by_itself(place: LocalPlace) -> None:
    """A home may be shared on purpose; these are not."""
    prefect = place.home / "prefect"
    assert [(place.home / name).stat().st_mode & 0o777 for name in (".", "prefect", "logs")] == [0o700] * 3
    for name in ("api-key", "prefect.db", "prefect.db-wal", "open-ui.html"):
        assert (prefect / name).stat().st_mode & 0o777 == 0o600, name


def test_the_key_is_in_no_log(place: LocalPlace) -> None:
    httpx.get(
        f"{place.server}/api/admin/version", headers={"Authorization": basic(place.key)}, trust_env=False
    )
    secret = place.key.partition(":")[2].encode()
    for log in (place.home / "logs").iterdir():
        text = log.read_bytes()
        assert secret not in text
        assert basic(place.key).encode() not in text


def test_prefects_own_command_gets_in_by_what_ui_prints(place: LocalPlace) -> None:
    printed = run_slipway(place.home, "ui", "--env").stdout
    listed = subprocess.run(
        ["/bin/sh", "-c", f'{printed}\n"{PREFECT}" deployment inspect check-health/check-health'],
        capture_output=True, text=True, check=False, cwd=place.folder,
    )  # fmt: skip
    assert listed.returncode == 0, listed.stderr
    assert "check_health" in listed.stdout


def test_the_browser_is_told_no_key_on_its_command_line(place: LocalPlace, tmp_path: Path) -> None:
    browser, seen = tmp_path / "browser", tmp_path / "seen"
    browser.write_text(f'#!/bin/sh\necho "$@" > {seen}\n')
    browser.chmod(0o755)
    shown = run_slipway(place.home, "ui", BROWSER=f"{browser} %s")
    assert shown.returncode == 0, shown.stderr
    page = place.home / "prefect" / "open-ui.html"
    assert seen.read_text() == f"{page.as_uri()}\n"
    assert place.key.partition(":")[2] not in shown.stdout + shown.stderr


def test_a_deploys_own_server_has_the_same_door(tmp_path: Path) -> None:
    from blocks.prefect.server import check_door, temporary_server
    from tasks.core.settings import Settings

    settings = Settings(home=tmp_path / "home", records="", registry="", s3_endpoint=None)
    with uncovered(), temporary_server(settings) as server:
        server.wait()
        check_door(settings, server.url)
        for headers, status in (
            ({}, 401),
            ({"Host": "evil.example"}, 400),
            ({"Origin": "http://evil.example"}, 403),
        ):
            answer = httpx.post(f"{server.url}/flows/filter", headers=headers, json={}, trust_env=False)
            assert answer.status_code == status


def test_the_worker_runs_only_what_the_list_holds(place: LocalPlace, tmp_path: Path) -> None:
    """Asked for with the key: by a form, an event, or a program that has it."""
    environment, proof = environment_of(tmp_path)
    request = {"request": {"environment": {"manager": "system", "path": str(environment)}}}
    refused = place.api.run("build-environment", request)
    assert refused["state_type"] == "FAILED"
    assert (
        f"request.environment.path is {environment}, which a run requested through the API"
        in refused["state"]["message"]
    )
    assert not proof.exists()
    (place.home / "allowed.toml").write_text(f'folders = ["{tmp_path}"]\n')
    place.api.run("build-environment", request)
    assert proof.exists()
