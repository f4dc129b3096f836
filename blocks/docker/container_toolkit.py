"""What gives GPUs to containers here: NVIDIA's container toolkit, CDI specifications, Docker's runtimes."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from blocks.processes.process import run
from tasks.compatibility.models import ToolkitReading
from tasks.core.errors import CommandError, MissingToolError

_TIMEOUT_S = 10
_PROGRAMS = ("nvidia-ctk", "nvidia-container-cli")
_FOLDERS = ("/usr/local/nvidia/toolkit", "/usr/bin")
"""Where the GPU Operator and packages put them besides PATH."""

_CDI_FOLDERS = (Path("/etc/cdi"), Path("/var/run/cdi"))
_CDI_SUFFIXES = (".yaml", ".yml", ".json")
_CDI_MOST_BYTES = 1 << 22
_NVIDIA_GPUS = re.compile(r"""\bkind["']?\s*:\s*["']?nvidia\.com/gpu\b""")
_VERSION = re.compile(r"(?:Toolkit CLI version|cli-version:)\s*([0-9]{1,5}(?:\.[0-9]{1,5}){1,3})(?![0-9.])")


def read_container_toolkit(folders: Sequence[Path] = _CDI_FOLDERS) -> ToolkitReading:
    """The toolkit that is installed, and whether a CDI specification in `folders` names NVIDIA's GPUs."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_FOLDERS])
    found = [program for name in _PROGRAMS if (program := shutil.which(name, path=path))]
    versions = ((program, _version(program)) for program in found)
    program, version = next((pair for pair in versions if pair[1]), (found[0] if found else None, None))
    return ToolkitReading(
        program=Path(program).name if program else None, version=version, cdi=names_gpus(folders)
    )


def _version(program: str) -> str | None:
    try:
        return parse_toolkit_version(run([program, "--version"], timeout_s=_TIMEOUT_S).stdout)
    except CommandError:
        return None


def parse_toolkit_version(text: str) -> str | None:
    """The version in `NVIDIA Container Toolkit CLI version 1.17.8` or `cli-version: 1.17.8`."""
    match = _VERSION.search(text)
    return match[1] if match else None


def names_gpus(folders: Sequence[Path]) -> bool:
    """Whether a CDI specification in these folders of this host names NVIDIA's GPUs."""
    return any(_names_gpus(file) for folder in folders for file in _files_of(folder))


def _files_of(folder: Path) -> list[Path]:
    try:
        return sorted(file for file in folder.iterdir() if file.suffix in _CDI_SUFFIXES)
    except OSError:
        return []


def _names_gpus(file: Path) -> bool:
    try:
        with file.open("rb") as content:
            text = content.read(_CDI_MOST_BYTES).decode(errors="replace")
    except OSError:
        return False
    return bool(_NVIDIA_GPUS.search(text))


def read_docker_runtimes() -> tuple[str, ...] | None:
    """Names of the runtimes that the Docker engine knows; None if no engine answers."""
    from blocks.docker.docker_engine import DockerEngine

    try:
        with DockerEngine.connect(timeout_s=_TIMEOUT_S) as docker:
            return docker.runtimes()
    except MissingToolError:
        return None
