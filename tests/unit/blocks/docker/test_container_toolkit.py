"""The container toolkit by its programs, CDI specifications by their kind, Docker's runtimes by Docker."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blocks.docker import container_toolkit
from blocks.docker.container_toolkit import (
    parse_toolkit_version,
    read_container_toolkit,
    read_docker_runtimes,
)
from tasks.compatibility.models import ToolkitReading

CTK = "NVIDIA Container Toolkit CLI version 1.17.8\ncommit: f202b80a9b9d0db00d9b1d73c0128c8962c55f4d\n"
CLI = "cli-version: 1.17.8\nlib-version: 1.17.8\nbuild date: 2025-05-30T13:47+0000\n"
CDI = "---\ncdiVersion: 0.5.0\ndevices:\n- name: '0'\nkind: nvidia.com/gpu\n"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on PATH; none of NVIDIA's own is there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setattr(container_toolkit, "_FOLDERS", ())
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), "/bin"]))
    return folder


def program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (CTK, "1.17.8"),
        (CLI, "1.17.8"),
        ("NVIDIA Container Toolkit CLI version 1.17.0-rc.2", "1.17.0"),
        ("NVIDIA Container Toolkit CLI version unknown", None),
        ("", None),
    ],
)
def test_versions(text: str, version: str | None) -> None:
    assert parse_toolkit_version(text) == version


def test_nothing_is_an_answer(programs: Path, tmp_path: Path) -> None:
    assert read_container_toolkit([tmp_path / "cdi"]) == ToolkitReading()


def test_the_first_program_that_says_its_version(programs: Path, tmp_path: Path) -> None:
    program(programs / "nvidia-ctk", "echo segmentation fault; exit 139")
    assert read_container_toolkit([tmp_path]) == ToolkitReading(program="nvidia-ctk")
    program(programs / "nvidia-container-cli", f'printf "{CLI}"')
    found = read_container_toolkit([tmp_path])
    assert (found.program, found.version) == ("nvidia-container-cli", "1.17.8")


def test_one_that_hangs_is_there_without_a_version(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(programs / "nvidia-ctk", "exec sleep 60")
    monkeypatch.setattr(container_toolkit, "_TIMEOUT_S", 0.1)
    assert read_container_toolkit([]) == ToolkitReading(program="nvidia-ctk")


@pytest.mark.parametrize(
    ("name", "text", "there"),
    [
        ("nvidia.yaml", CDI, True),
        ("nvidia.json", '{"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": []}', True),
        ("vendor.yaml", "kind: vendor.com/gpu\n# not nvidia.com/gpu\n", False),
        ("nvidia.yaml.bak", CDI, False),
    ],
)
def test_cdi(programs: Path, tmp_path: Path, name: str, text: str, there: bool) -> None:
    (tmp_path / "cdi").mkdir()
    (tmp_path / "cdi" / name).write_text(text)
    (tmp_path / "cdi" / "folder.yaml").mkdir()
    (tmp_path / "cdi" / "dangling.yaml").symlink_to(tmp_path / "nowhere")
    assert read_container_toolkit([tmp_path / "nowhere", tmp_path / "cdi"]).cdi is there


def test_without_docker_its_runtimes_are_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    assert read_docker_runtimes() is None


@pytest.mark.docker
def test_docker_names_its_runtimes() -> None:
    assert "runc" in (read_docker_runtimes() or ())
