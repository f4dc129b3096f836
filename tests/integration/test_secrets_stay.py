"""A password in the registry's address and a token with a line break are nowhere after a deploy that fails by them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from blocks.processes.ports import free_port

pytestmark = pytest.mark.server

MODEL = Path(__file__).parents[2] / "examples" / "tiny" / "model"
SLIPWAY = Path(sys.executable).with_name("slipway")
PASSWORD, TOKEN = "TopSecret1", "FirstHalf12\nSecondHalf34"
PIECES = ("TopSecret1", "FirstHalf12", "SecondHalf34")


def ended(home: Path, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    return subprocess.run(
        [SLIPWAY, *arguments],
        env={**own, "SLIPWAY_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    file = tmp_path / "spec.yaml"
    file.write_text("name: chat\nmodel: models:/assistant@champion\n")
    return file


def faults(spec: Path) -> dict[str, tuple[dict[str, str], tuple[str | Path, ...]]]:
    address = f"http://ci:{PASSWORD}@127.0.0.1:{free_port()}"
    with_token = {"SLIPWAY_REGISTRY": address, "MLFLOW_TRACKING_TOKEN": TOKEN}
    return {
        "a deploy": (with_token, ("deploy", spec, "--json")),
        "a copy": (with_token, ("stage", "copy", "models:/assistant@champion", "--to", spec.parent / "copy")),
        "a wrong option": ({}, ("tune", "batch", f"--slo-ms=password={PASSWORD}")),
    }


@pytest.mark.parametrize("what", ["a deploy", "a copy", "a wrong option"])
def test_no_secret_is_in_what_is_printed_or_kept(what: str, spec: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    environment, arguments = faults(spec)[what]
    done = ended(home, *arguments, **environment)
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr
    printed = done.stdout + done.stderr
    assert (what == "a wrong option") == ("***" in printed)  # the others name what is wrong without its value
    kept = {
        str(path): path.read_bytes().decode(errors="replace") for path in home.rglob("*") if path.is_file()
    }
    for place, text in {"printed": printed, **kept}.items():
        assert not [piece for piece in PIECES if piece in text], place


def test_what_the_home_holds_is_for_its_owner_alone(spec: Path, tmp_path: Path) -> None:
    """Under the usual mask, which lets others read, after a deploy that failed in a run."""
    home = tmp_path / "home"
    spec.write_text(
        f"name: chat\nmodel: file:{MODEL}\nengine: llama.cpp\nenvironment:\n  requirements: [no-such-1==1]\n"
    )
    before = os.umask(0o022)
    try:
        assert ended(home, "deploy", spec).returncode == 3
    finally:
        os.umask(before)
    assert list(home.rglob("logs/*.log"))
    assert list(home.rglob("records/*/*.json"))
    others = stat.S_IRWXG | stat.S_IRWXO
    files = [path for path in home.rglob("*") if path.is_file() and home / "prefect" not in path.parents]
    open_to_others = [path for path in files if path.stat().st_mode & others]
    assert open_to_others == []
