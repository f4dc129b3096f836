"""The file systems of folders, from the mount table and sysfs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import psutil

from tasks.core.facts import Disk
from tasks.core.files import mount_of

_SYSFS = Path("/sys/dev/block")


def read_disks(folders: Iterable[Path]) -> tuple[Disk, ...]:
    """The file systems of these folders, each once; for a folder that does not exist yet, where it would be
    created."""
    found: dict[Path, Disk] = {}
    for folder in folders:
        try:
            mount = mount_of(folder)
            found.setdefault(mount, _disk(mount))
        except OSError:  # masked, or a network file system that does not answer: nothing is known
            continue
    return tuple(found.values())


def _disk(mount: Path) -> Disk:
    usage = psutil.disk_usage(str(mount))
    # Of several mounts on one path, the last is visible.
    rows = [row for row in psutil.disk_partitions(all=True) if row.mountpoint == str(mount)]
    device = rows[-1].device if rows else None
    return Disk(
        mount=_shown(str(mount)),
        device=_shown(device) if device else None,
        file_system=(rows[-1].fstype or None) if rows else None,
        size_bytes=usage.total,
        free_bytes=usage.free,
        rotational=rotational(_number_of(device, mount)),
    )


def _shown(name: str) -> str:
    """A file name as printable text, even if it is not UTF-8."""
    return name.encode(errors="replace").decode()


def _number_of(device: str | None, mount: Path) -> int:
    """The block device's number, from the device file if there is one: the number of a btrfs mount is not a
    device's."""
    if device and Path(device).is_block_device():
        return Path(device).stat().st_rdev
    return mount.stat().st_dev


def rotational(number: int, sysfs: Path = _SYSFS) -> bool | None:
    """Whether the kernel calls that block device rotational; None if it is not one, or sysfs is masked."""
    try:
        device = (sysfs / f"{os.major(number)}:{os.minor(number)}").resolve(strict=True)
        whole = device.parent if (device / "partition").exists() else device
        return (whole / "queue" / "rotational").read_text().strip() == "1"
    except OSError:
        return None
