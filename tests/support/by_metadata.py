"""Distributions that are installed by their metadata alone: real, as the index tells it, without their gigabytes.

Recorded in `metadata/` from `pip install --dry-run --report`; requirements of extras are left out.
"""

from __future__ import annotations

import json
from pathlib import Path

_RECORDED = Path(__file__).with_name("metadata")


def install_metadata(site_packages: Path, recorded: str) -> None:
    """Write the metadata of every distribution in the record of that name."""
    for found in json.loads((_RECORDED / f"{recorded}.json").read_text()):
        folder = site_packages / f"{found['name'].replace('-', '_')}-{found['version']}.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {found['name']}", f"Version: {found['version']}"]
        lines += [f"Requires-Dist: {text}" for text in found["requires_dist"]]
        (folder / "METADATA").write_text("\n".join(lines) + "\n")
        (folder / "WHEEL").write_text("Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        (folder / "INSTALLER").write_text("pip\n")
        (folder / "RECORD").write_text("")
