"""Commands as a user runs them, in a home of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from waiting import wait_until

SLIPWAY = Path(sys.executable).with_name("slipway")


@dataclass(frozen=True)
class Ended:
    """What a command did."""

    code: int
    stdout: str
    stderr: str

    @property
    def answer(self) -> Any:
        """The JSON document it printed."""
        assert self.code in (0, 3), self.stderr
        return json.loads(self.stdout)

    @property
    def error(self) -> str:
        """The one line that says what is wrong; nothing was printed that looks like a traceback."""
        assert "Traceback" not in self.stderr
        lines = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.stderr
        return lines[0].removeprefix("error: ")

    @property
    def fix(self) -> str:
        """The way out."""
        return next(line for line in self.stderr.splitlines() if line.startswith("  fix: "))


@dataclass(frozen=True)
class Desk:
    """A home, and commands run in it."""

    home: Path
    api: str

    def run(self, *arguments: str | Path, env: dict[str, str] | None = None) -> Ended:
        environment = {
            **os.environ,
            "SLIPWAY_HOME": str(self.home),
            "PREFECT_API_URL": self.api,
            **(env or {}),
        }
        finished = subprocess.run(
            [SLIPWAY, *arguments], env=environment, capture_output=True, text=True, check=False
        )
        return Ended(finished.returncode, finished.stdout, finished.stderr)

    def deploy(self, spec: Path, *more: str, env: dict[str, str] | None = None) -> Ended:
        return self.run("deploy", spec, "--json", *more, env=env)

    def leftovers(self) -> list[str]:
        """Unfinished files, and processes of this home."""
        found = [str(path) for path in self.home.rglob("*.part")]
        for process in psutil.process_iter(["cmdline"]):
            line = " ".join(process.info["cmdline"] or [])
            if str(self.home) in line:
                found.append(line)
        return found

    def left_nothing_but(self, before: list[str]) -> None:
        """Nothing is there that was not before; what is ending is given a moment."""
        wait_until(
            lambda: set(self.leftovers()) <= set(before),
            f"nothing is left but {before}",
            timeout_s=20,
        )
