"""Install packages into a folder for an image, with uv: from its cache, checked against the lock's hashes."""

from __future__ import annotations

import sys
from pathlib import Path

from blocks.processes.process import find_tool, last_lines, run
from tasks.core.child_environment import Needs
from tasks.core.errors import CommandError
from tasks.rollout.container.models import ImagePlan

_TIMEOUT_S = 1800.0


def install_arguments(plan: ImagePlan, pins: Path, target: Path) -> list[str]:
    """uv's arguments: the pins of that file and what they require, all verified by the lock's hashes."""
    return [
        *("pip", "install", "--quiet", "--color", "never", "--no-python-downloads"),
        *("--require-hashes", "--only-binary", ":all:", "--link-mode", "copy"),
        *("--python", sys.executable, "--python-version", plan.python, "--python-platform", plan.platform),
        *("--constraints", str(plan.lock), "--requirements", str(pins), "--target", str(target)),
    ]


def install_packages(plan: ImagePlan, target: Path) -> None:
    """Install what serving needs into `target`. Raises `CommandError` with uv's message."""
    uv = find_tool("uv", install="install it: pip install uv")
    pins = target.with_name("pins.txt")
    pins.write_text("\n".join(plan.pins) + "\n")
    done = run([uv, *install_arguments(plan, pins, target)], timeout_s=_TIMEOUT_S, needs=(Needs.PACKAGES,))
    pins.unlink()
    if done.code != 0:
        raise CommandError(
            f"the packages of the image {plan.name} could not be installed",
            fix="check the network, or that the lock was made for this platform",
            detail=last_lines(done.stderr),
        )
