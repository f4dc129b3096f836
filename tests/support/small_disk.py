"""A real, small file system for as long as a block takes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tool_environment import UnavailableError, give_up


@contextmanager
def small_disk_at(place: Path, size: str) -> Iterator[Path]:
    """`place` is made and mounted; `size` as mount takes it. Gives up where this user may not mount: only root may."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "slipway-test", place]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        give_up("mount", UnavailableError(f"no small disk can be mounted here: {mounted.stderr.strip()}"))
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
