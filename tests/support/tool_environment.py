"""Servers for tests, each in an environment of its own below the user's cache, built once from a hash lock."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from tasks.core.files import file_lock

REQUIRED = frozenset(filter(None, os.environ.get("SLIPWAY_REQUIRE", "").split(",")))
"""Needs whose absence is a failure, not a skip."""


class UnavailableError(Exception):
    """Why a server cannot run here."""


def give_up(need: str, error: UnavailableError) -> NoReturn:
    """Skip the test, or fail it where the need is required."""
    if need in REQUIRED:
        pytest.fail(f"SLIPWAY_REQUIRE={need}, but {error}", pytrace=False)
    pytest.skip(str(error))


def environment(package: str, lock_file: Path) -> Path:
    """The environment that the lock describes, named by its `package`. Raises `UnavailableError`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slipway-tests"
    wanted = lock_file.read_text()
    name = f"{package}-{wanted.partition(f'{package}==')[2].split()[0]}"
    folder = cache / name
    cache.mkdir(parents=True, exist_ok=True)
    with file_lock(cache / f"{name}.lock", wait=True, holder=package):
        ready = folder / ".ready"
        if not ready.exists() or ready.read_text() != wanted:
            uv = Path(sys.executable).with_name("uv")
            _build(package, [uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, folder])
            _build(package, [uv, "pip", "sync", "--quiet", "--python", folder / "bin" / "python", lock_file])
            ready.write_text(wanted)
    return folder


def _build(package: str, command: list[Path | str]) -> None:
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise UnavailableError(f"{package} cannot be installed: {answer.stderr.strip()[-500:]}")
