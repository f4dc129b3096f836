"""The user-mode driver that programs started by this process would load."""

from __future__ import annotations

import json
import sys
from importlib.resources import files
from pathlib import Path

from blocks.processes.process import run
from tasks.compatibility.models import CudaLibraryReading
from tasks.core.child_environment import Needs
from tasks.core.errors import CommandError

_TIMEOUT_S = 30.0
_WORKER = Path(str(files("tasks.compatibility"))) / "worker" / "find_cuda_library.py"


def read_cuda_library() -> CudaLibraryReading | None:
    """The `libcuda.so.1` that the dynamic loader finds in a child process; None without one."""
    try:
        done = run([sys.executable, "-I", _WORKER], timeout_s=_TIMEOUT_S, needs=(Needs.COMPUTE,))
    except CommandError:
        return None
    return parse_cuda_library(done.stdout)


def parse_cuda_library(text: str) -> CudaLibraryReading | None:
    """The worker's answer; None for anything else. CUDA counts `1000 * major + 10 * minor`."""
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict) or not isinstance(answer.get("path"), str):
        return None
    number = answer.get("cuda")
    cuda = number if isinstance(number, int) and 1000 <= number < 100_000 else None
    version = f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda is not None else None
    return CudaLibraryReading(path=answer["path"], cuda=version)
