"""A Jetson by its device tree and by L4T: up to JetPack 5 it has neither NVML nor nvidia-smi."""

from __future__ import annotations

import re
from pathlib import Path

from blocks.host.nvidia_tools import text_of
from tasks.compatibility.models import TegraReading
from tasks.core.facts import version_or_none

_TREES = ("proc/device-tree", "sys/firmware/devicetree/base")
"""The same tree twice; container engines mask the second, to which the first is a link."""
_CHIP = re.compile(r"nvidia,(tegra[0-9]{3})\b")
_L4T = re.compile(r"^# R([0-9]{1,3}) \(release\), REVISION: ([0-9]{1,3}(?:\.[0-9]{1,3})*)", re.MULTILINE)


def read_tegra(root: Path = Path("/")) -> TegraReading:
    """The board, its chip and its L4T; empty on other hosts."""
    compatible = _first(root, "compatible")
    chip = _CHIP.search(compatible)
    if chip is None:
        return TegraReading()
    release = _L4T.search(text_of(root / "etc/nv_tegra_release"))
    l4t = f"{release[1]}.{release[2]}" if release else None
    return TegraReading(model=_first(root, "model") or None, chip=chip[1], l4t=version_or_none(l4t))


def _first(root: Path, name: str) -> str:
    """A property of the device tree; its texts end with a zero byte."""
    found = (text_of(root / tree / name).replace("\0", " ").strip() for tree in _TREES)
    return next(filter(None, found), "")
