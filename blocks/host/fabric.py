"""NVIDIA's fabric manager: the service without which CUDA does not start on GPUs that NVSwitch connects."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from blocks.host.nvidia_tools import text_of
from blocks.processes.process import run
from tasks.compatibility.models import FabricReading
from tasks.core.child_environment import Needs
from tasks.core.errors import CommandError

_PROGRAM = "nv-fabricmanager"
_COMM = _PROGRAM[:15]
"""The kernel keeps 15 characters of a process's name."""
_VERSION = re.compile(r"\b([0-9]{3}\.[0-9]{1,4}(?:\.[0-9]{1,4})?)\b")
_TIMEOUT_S = 10.0


def read_fabric(root: Path = Path("/")) -> FabricReading:
    """Whether the fabric manager runs, and its version.

    A container has processes of its own: there, a fabric manager that is not seen may still run on the host.
    """
    running = any(text_of(comm).strip() == _COMM for comm in root.glob("proc/[0-9]*/comm"))
    switches = any(root.glob("dev/nvidia-nvswitch[0-9]*")) or any(
        root.glob("proc/driver/nvidia-nvswitch/devices/*")
    )
    if running:
        return FabricReading(running=True, version=_version())
    sees_host = text_of(root / "proc/1/comm").strip() in ("init", "systemd")
    return FabricReading(running=False if switches and sees_host else None)


def _version() -> str | None:
    program = shutil.which(_PROGRAM)
    if program is None:
        return None
    try:
        return parse_version(run([program, "--version"], timeout_s=_TIMEOUT_S, needs=(Needs.COMPUTE,)).stdout)
    except CommandError:
        return None


def parse_version(text: str) -> str | None:
    """The version in `Fabric Manager version is : 580.126.09`."""
    match = _VERSION.search(text)
    return match[1] if match else None
