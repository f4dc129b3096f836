"""Boards by their device tree, as it stands on Jetsons, and as a container sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from blocks.host.tegra import read_tegra
from tasks.compatibility.models import TegraReading

ORIN = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0000\0nvidia,p3701-0000\0nvidia,tegra234\0",
    "etc/nv_tegra_release": (
        "# R35 (release), REVISION: 3.1, GCID: 32790763, BOARD: t186ref, EABI: aarch64, DATE: Wed Mar 15 07:54:12 UTC 2023\n"
    ),
}
THOR = {
    "sys/firmware/devicetree/base/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
    "sys/firmware/devicetree/base/compatible": "nvidia,p4071-0000+p3834-0008\0nvidia,p3834-0008\0nvidia,tegra264\0",
    "etc/nv_tegra_release": "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64\n",
}
NANO = {
    "proc/device-tree/compatible": "nvidia,p3449-0000-b00+p3448-0000-b00\0nvidia,jetson-nano\0nvidia,tegra210\0",
    "etc/nv_tegra_release": "# R32 (release), REVISION: 7.1, GCID: 29689809, BOARD: t210ref, EABI: aarch64\n",
}
RASPBERRY = {
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "proc/device-tree/compatible": "raspberrypi,5-model-b\0brcm,bcm2712\0",
}


@pytest.mark.parametrize(
    ("files", "reading"),
    [
        (ORIN, TegraReading(model="NVIDIA Jetson AGX Orin Developer Kit", chip="tegra234", l4t="35.3.1")),
        (THOR, TegraReading(model="NVIDIA Jetson AGX Thor Developer Kit", chip="tegra264", l4t="38.2.0")),
        (NANO, TegraReading(chip="tegra210", l4t="32.7.1")),
        ({**NANO, "etc/nv_tegra_release": "of somebody's own"}, TegraReading(chip="tegra210")),
        (RASPBERRY, TegraReading()),
        ({"etc/nv_tegra_release": ORIN["etc/nv_tegra_release"]}, TegraReading()),
        ({}, TegraReading()),
    ],
)
def test_boards(files: dict[str, str], reading: TegraReading, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert read_tegra(tmp_path) == reading
