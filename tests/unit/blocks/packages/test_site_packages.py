"""How an image's packages are installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from inline_snapshot import snapshot

from blocks.packages.site_packages import install_arguments, install_packages
from tasks.core.errors import CommandError
from tasks.rollout.container.models import ImagePlan


def plan(lock: Path) -> ImagePlan:
    return ImagePlan(
        name="slipway/x:1",
        dockerfile="",
        pins=("docker==7.1.0",),
        lock=lock,
        python="3.11",
        platform="x86_64-manylinux_2_28",
        files={},
        base_image="base",
        system_libraries=(),
    )


def test_every_file_is_held_to_the_lock() -> None:
    arguments = install_arguments(plan(Path("/l.txt")), Path("/pins.txt"), Path("/site"))
    assert [arg.replace(sys.executable, "PYTHON") for arg in arguments] == snapshot(
        [
            "pip",
            "install",
            "--quiet",
            "--color",
            "never",
            "--no-python-downloads",
            "--require-hashes",
            "--only-binary",
            ":all:",
            "--link-mode",
            "copy",
            "--python",
            "PYTHON",
            "--python-version",
            "3.11",
            "--python-platform",
            "x86_64-manylinux_2_28",
            "--constraints",
            "/l.txt",
            "--requirements",
            "/pins.txt",
            "--target",
            "/site",
        ]
    )


def test_a_package_without_a_hash_is_not_installed(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("docker==7.1.0\n")
    with pytest.raises(CommandError) as caught:
        install_packages(plan(lock), tmp_path / "site")
    assert caught.value.what == "the packages of the image slipway/x:1 could not be installed"
    assert "require-hashes" in (caught.value.detail or "")
    assert not (tmp_path / "site" / "docker").exists()
