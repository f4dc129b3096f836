"""Optuna for a while: it is no dependency, only what one would use instead of a search of one's own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def with_optuna() -> Iterator[None]:
    """Optuna can be imported inside."""
    with tempfile.TemporaryDirectory() as folder:
        uv = Path(sys.executable).with_name("uv")
        install = [uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", folder, "optuna"]
        subprocess.run(install, check=True)
        sys.path.append(folder)
        try:
            yield
        finally:
            sys.path.remove(folder)
