"""Commands in surroundings as people have them: they work, or end in one line. With a real Prefect server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from blocks.processes.ports import free_port

SLIPWAY = Path(sys.executable).with_name("slipway")
DEAD = "http://127.0.0.1:9"
PROXIES = dict.fromkeys(
    ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"), DEAD
)
CERTIFICATES = {
    "SSL_CERT_FILE": "/nonexistent/ca.pem",
    "SSL_CERT_DIR": "/nonexistent",
    "REQUESTS_CA_BUNDLE": "/etc/passwd",
    "PREFECT_API_SSL_CERT_FILE": "/nonexistent",
}
ANOTHER_PREFECT = {
    "PREFECT_PROFILE": "nosuch",
    "PREFECT_HOME": "/nonexistent",
    "PREFECT_API_KEY": "pnu_none",
    "PREFECT_API_AUTH_STRING": "admin:pass",
    "PREFECT_SERVER_API_AUTH_STRING": "admin:pass",
    "PREFECT_SERVER_API_BASE_PATH": "/prefect/api",
    "PREFECT_CLIENT_CUSTOM_HEADERS": '{"Host": "elsewhere"}',
}
SMALL_THINGS = {
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONIOENCODING": "ascii",
    "TZ": "junk/../junk",
    "TMPDIR": "/nonexistent",
    "COLUMNS": "abc",
    "TERM": "nosuch",
}
ODD_EXCEPTIONS = "localhost,127.0.0.0/8,::1/128,[::1],fd00::/8,büro,:,host:port"
SURROUNDINGS = {
    "proxies": {**PROXIES, "NO_PROXY": ODD_EXCEPTIONS, **CERTIFICATES},
    "socks": {"ALL_PROXY": "socks5://127.0.0.1:9", "all_proxy": "socks://127.0.0.1:9", **ANOTHER_PREFECT},
    "not proxies": {**dict.fromkeys(PROXIES, "socks4://me:TopSecret1@[::1"), **SMALL_THINGS},
}
"""Several at once where none hides another: each alone is looked at in the unit tests."""


@pytest.fixture(params=SURROUNDINGS.values(), ids=SURROUNDINGS)
def surroundings(request: pytest.FixtureRequest, slipway_home: Path) -> dict[str, str]:
    """The environment of a command in one of them, with an empty home."""
    clean = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    return {**clean, **request.param}


def run(environment: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        [SLIPWAY, *arguments], env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    assert "Traceback" not in ended.stderr, ended.stderr
    assert "failed unexpectedly" not in ended.stderr, ended.stderr
    assert "TopSecret1" not in ended.stderr + ended.stdout
    errors = [line for line in ended.stderr.splitlines() if line.lower().startswith("error")]
    assert len(errors) == (ended.returncode in (1, 2)), ended.stderr
    return ended


COMMANDS: dict[str, tuple[tuple[str, ...], int]] = {
    "status": (("status",), 0),
    "health": (("health", "nosuch"), 2),
    "logs": (("logs", "nosuch"), 2),
    "stop": (("stop", "nosuch"), 2),
    "down": (("down",), 0),
    "doctor": (("doctor",), 0),
    "survey": (("survey",), 0),
    "engines": (("engines",), 0),
    "kb": (("kb", "records"), 0),
    "compat": (("compat", "check", "--engine", "llama.cpp"), 0),
    "dify": (("dify", "register", "nosuch", "--block", "nosuch"), 2),
    "plan": (("deploy", "SPEC", "--dry-run"), 0),
    "port": (("deploy", "SPEC", "--set", "rollout.host=192.0.2.7"), 2),
    "copy": (("stage", "copy", "MODEL", "--to", "HOME/copied"), 0),
}


@pytest.fixture
def spec(random_model: Path, tmp_path: Path) -> Path:
    """Of a deploy that ends in its first stage: the folder of wheels is empty."""
    (tmp_path / "wheels").mkdir()
    spec = tmp_path / "modèle.yaml"
    spec.write_text(
        f"name: chat\nmodel: file:{random_model}\nhardware: {{cpus: 1}}\nstaging: {{disk_benchmark: false}}\n"
        f"environment: {{wheels: {tmp_path / 'wheels'}}}\n",
        encoding="utf-8",
    )
    return spec


def test_commands_that_need_no_server(
    surroundings: dict[str, str], spec: Path, random_model: Path, slipway_home: Path
) -> None:
    places = {"SPEC": spec, "MODEL": random_model, "HOME/copied": slipway_home / "copied"}
    codes = {
        name: run(surroundings, *(places.get(word, word) for word in words)).returncode
        for name, (words, _) in COMMANDS.items()
    }
    assert codes == {name: code for name, (_, code) in COMMANDS.items()}


@pytest.mark.server
def test_a_deploy_reports_to_a_server_of_its_own(surroundings: dict[str, str], spec: Path) -> None:
    """It gets as far as everywhere: the lock cannot be made from an empty folder of wheels."""
    ended = run(surroundings, "deploy", spec)
    assert "starting a server for this command" in ended.stdout + ended.stderr
    assert "ready at http://127.0.0.1:" in ended.stdout + ended.stderr
    assert "environment" in ended.stdout + ended.stderr
    assert ended.returncode in (1, 3), ended.stderr


@pytest.mark.server
def test_up_starts_and_its_server_is_used(slipway_home: Path, spec: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    environment = {**clean, **SURROUNDINGS["proxies"], **ANOTHER_PREFECT}
    try:
        server = json.loads(run(environment, "up", "--port", str(free_port()), "--json").stdout)["server"]
        ended = run({**environment, "PREFECT_API_URL": f"{server}/api"}, "deploy", spec)
        assert f"ready at {server}/api" in ended.stdout + ended.stderr
    finally:
        assert run(environment, "down").returncode == 0


@pytest.mark.parametrize("url", [f"{DEAD}/api", "not-a-url", "http://127.0.0.1:1/"])
def test_another_server_that_is_not_there_is_one_line_before_any_work(
    url: str, slipway_home: Path, spec: Path
) -> None:
    for command in (("deploy", spec), ("tune", "quantization", spec)):
        ended = run({**os.environ, "PREFECT_API_URL": url}, *command)
        assert "PREFECT_API_URL" in ended.stderr
        assert not (slipway_home / "records").exists()
