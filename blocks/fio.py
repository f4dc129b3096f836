"""A disk's speed by fio: past the page cache, on a file of its own, in a few seconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blocks.process import find_tool, run
from tasks.core.errors import CommandError, DiskFullError
from tasks.core.files import PART, mount_of
from tasks.staging.models import DiskFigures

MEASURE_FILE = f"slipway-fio{PART}"
_FILE_BYTES = 1 << 30
_LEAST_BYTES = 64 << 20
_STEP_BYTES = 4 << 20
_PHASE_S = 1.2
_TIMEOUT_S = 60.0


def measure(folder: Path) -> DiskFigures:
    """Sequential read and write, then random write, on the disk of `folder`; at most six seconds.

    Call only while nobody else measures there. Raises `MissingToolError` without fio, `DiskFullError` where
    there is no room for a file worth measuring, `CommandError` when fio fails.
    """
    fio = program()
    folder.mkdir(parents=True, exist_ok=True)
    size = file_bytes(shutil.disk_usage(folder).free)
    if size is None:
        raise DiskFullError(
            f"too little room to measure the disk mounted at {mount_of(folder)}", fix="free space on it"
        )
    file = folder / MEASURE_FILE
    file.unlink(missing_ok=True)
    try:
        return _measure(fio, file, size, direct=True)
    except CommandError:
        file.unlink(missing_ok=True)
        return _measure(fio, file, size, direct=False)
    finally:
        file.unlink(missing_ok=True)


def program() -> str:
    """Path of fio. Raises `MissingToolError` that says how to install it."""
    return find_tool("fio", install="install it: apt install fio")


def file_bytes(free_bytes: int) -> int | None:
    """Size of the file to measure with: at most a quarter of what is free; None if that is too little."""
    size = min(_FILE_BYTES, free_bytes // 4) // _STEP_BYTES * _STEP_BYTES
    return size if size >= _LEAST_BYTES else None


def write_command(fio: str, file: Path, size: int, *, direct: bool) -> list[str]:
    """Write up to `size` bytes. Nothing is allocated ahead: reading what was never written is no reading."""
    return [
        *_common(fio, file, size, direct=direct),
        "--fallocate=none",
        "--end_fsync=1",
        *("--name=write", "--rw=write", "--bs=4M", "--iodepth=8"),
    ]


def read_command(fio: str, file: Path, size: int, *, direct: bool) -> list[str]:
    """Read those bytes again and again, then write at random into them."""
    return [
        *_common(fio, file, size, direct=direct),
        "--time_based",
        *("--name=read", "--rw=read", "--bs=4M", "--iodepth=8", "--stonewall"),
        *("--name=random", "--rw=randwrite", "--bs=4k", "--iodepth=64", "--numjobs=2"),
        *("--group_reporting", "--stonewall"),
    ]


def _common(fio: str, file: Path, size: int, *, direct: bool) -> list[str]:
    engine = "libaio" if direct else "psync"
    return [
        fio,
        "--thread",  # one process: fio's jobs start sessions of their own, and wait for ever for a killed parent
        "--output-format=json",
        f"--filename={file}",
        f"--size={size}",
        f"--runtime={_PHASE_S}",
        f"--ioengine={engine}",
        f"--direct={int(direct)}",
    ]


def _measure(fio: str, file: Path, size: int, *, direct: bool) -> DiskFigures:
    (written,) = _jobs(write_command(fio, file, size, direct=direct))
    there = file.stat().st_size // _STEP_BYTES * _STEP_BYTES
    read, random = _jobs(read_command(fio, file, there, direct=direct))
    return DiskFigures(
        read_mb_s=read["read"]["bw_bytes"] / 1e6,
        write_mb_s=written["write"]["bw_bytes"] / 1e6,
        random_write_iops=random["write"]["iops"],
        direct=direct,
        file_bytes=there,
    )


def _jobs(command: Sequence[str]) -> list[dict[str, Any]]:
    answer = run(command, timeout_s=_TIMEOUT_S).check("measuring the disk")
    try:
        jobs: list[dict[str, Any]] = json.loads(answer.stdout[answer.stdout.index("{") :])["jobs"]
    except (ValueError, KeyError) as error:
        raise CommandError(f"fio printed no figures: {answer.stdout[:200]!r}") from error
    return jobs
