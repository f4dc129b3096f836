"""The fabric manager by its process, where processes of the host can be seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from blocks.host import fabric
from blocks.host.fabric import parse_version, read_fabric
from tasks.compatibility.models import FabricReading

HOST = {"proc/1/comm": "systemd\n", "proc/77/comm": "sshd\n"}
SWITCH = {"dev/nvidia-nvswitch0": ""}
MANAGER = {"proc/912/comm": "nv-fabricmanage\n"}


@pytest.mark.parametrize(
    ("files", "running"),
    [
        ({**HOST, **SWITCH, **MANAGER}, True),
        ({**HOST, **MANAGER}, True),
        ({**HOST, **SWITCH}, False),
        ({**HOST, "proc/driver/nvidia-nvswitch/devices/0000:05:00.0": ""}, False),
        (HOST, None),
        ({"proc/1/comm": "python\n", **SWITCH}, None),
        ({}, None),
    ],
)
def test_by_its_process(
    files: dict[str, str], running: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert read_fabric(tmp_path) == FabricReading(running=running)


@pytest.mark.parametrize(
    ("script", "version"),
    [
        ("echo Fabric Manager version is : 580.126.09", "580.126.09"),
        ("exec sleep 60", None),
        ("exit 1", None),
    ],
)
def test_its_version_is_what_the_program_prints(
    script: str, version: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nv-fabricmanager"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    if version is None:
        monkeypatch.setattr(fabric, "_TIMEOUT_S", 0.2)
    (tmp_path / "proc/9").mkdir(parents=True)
    (tmp_path / "proc/9/comm").write_text("nv-fabricmanage\n")
    assert read_fabric(tmp_path) == FabricReading(running=True, version=version)


def test_a_text_without_version_has_none() -> None:
    assert parse_version("no such option") is None
