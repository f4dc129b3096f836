"""Measure a disk's speed with fio: bypassing the page cache, on a file of its own, in several configurations."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blocks.processes.process import find_tool, run
from tasks.core.errors import CommandError, DiskFullError
from tasks.core.files import PART, mount_of
from tasks.staging.disk.models import DiskFigures, MeasuredRead, ReadConfiguration

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""fio's buffers on transparent huge pages, if available. Small pages cost a virtual disk up to half of its
speed and would hide its limit; pages reserved for `--iomem=mmaphuge` are not faster (measured)."""

MEASURE_FILE = f"slipway-fio{PART}"
_FILE_BYTES = 1 << 30
_THOROUGH_FILE_BYTES = 8 << 30
"""Size that a hypervisor is less likely to hold in its own cache."""

_LEAST_BYTES = 64 << 20
_STEP_BYTES = 16 << 20
_WRITE_S = 2.0
_THOROUGH_WRITE_S = 60.0
_RANDOM_S = 1.2
_READ_S = 0.8
_THOROUGH_READ_S = 3.0
_TIMEOUT_S = 600.0
_QUICK = ((4, 4), (2, 16), (1, 32))
"""MiB and depth: the best one differs between disks and hypervisors, and one of these is always close to it."""

_BLOCKS_MIB = (1, 2, 4, 8, 16)
_DEPTHS = (1, 4, 8, 16, 32)


def measure(folder: Path, *, thorough: bool = False) -> DiskFigures:
    """Sequential write, reads by several configurations, then random write, on the disk of `folder`.

    Takes about seven seconds, `thorough` about two minutes. Call only while nothing else measures there. Raises
    `MissingToolError` without fio, `DiskFullError` without space for a large enough file, `CommandError` if fio
    fails.
    """
    fio = program()
    folder.mkdir(parents=True, exist_ok=True)
    size = file_bytes(shutil.disk_usage(folder).free, _THOROUGH_FILE_BYTES if thorough else _FILE_BYTES)
    if size is None:
        raise DiskFullError(
            f"too little space to measure the disk mounted at {mount_of(folder)}", fix="free space on it"
        )
    file = folder / MEASURE_FILE
    file.unlink(missing_ok=True)
    reads = read_configurations(thorough=thorough)
    try:
        with contextlib.suppress(CommandError):  # whether direct I/O is refused only shows when it is tried
            return _measure(fio, file, size, reads, thorough=thorough, direct=True)
        file.unlink(missing_ok=True)
        return _measure(fio, file, size, reads, thorough=thorough, direct=False)
    finally:
        file.unlink(missing_ok=True)


def program() -> str:
    """Path of fio. Raises `MissingToolError` that says how to install it."""
    return find_tool("fio", install="install it: apt install fio")


def file_bytes(free_bytes: int, most_bytes: int = _FILE_BYTES) -> int | None:
    """Size of the file to measure with, bytes: at most a quarter of the free space; None if that is too little."""
    size = min(most_bytes, free_bytes // 4) // _STEP_BYTES * _STEP_BYTES
    return size if size >= _LEAST_BYTES else None


def read_configurations(*, thorough: bool) -> tuple[ReadConfiguration, ...]:
    """The configurations to try."""
    pairs = [(mib, depth) for mib in _BLOCKS_MIB for depth in _DEPTHS] if thorough else _QUICK
    return tuple(ReadConfiguration(block_bytes=mib << 20, depth=depth) for mib, depth in pairs)


def write_command(fio: str, file: Path, size: int, *, seconds: float, direct: bool) -> list[str]:
    """Write up to `size` bytes, for at most that long, without preallocation: reads must find real data."""
    return [
        *_common(fio, file, size, direct=direct),
        *("--fallocate=none", "--end_fsync=1", f"--runtime={seconds}"),
        *("--name=write", "--rw=write", "--bs=4M", "--iodepth=8"),
    ]


def read_command(
    fio: str, file: Path, size: int, reads: Sequence[ReadConfiguration], *, seconds: float, direct: bool
) -> list[str]:
    """Read those bytes in each configuration in turn, then write into them at random."""
    command = [*_common(fio, file, size, direct=direct), "--time_based"]
    for number, read in enumerate(reads):
        command += [f"--name=read-{number}", "--rw=read", f"--bs={read.block_bytes >> 20}M"]
        command += [f"--iodepth={read.depth}", f"--runtime={seconds}", "--stonewall"]
    return [
        *command,
        *("--name=random", "--rw=randwrite", "--bs=4k", "--iodepth=64", "--numjobs=2"),
        *(f"--runtime={_RANDOM_S}", "--group_reporting", "--stonewall"),
    ]


def _common(fio: str, file: Path, size: int, *, direct: bool) -> list[str]:
    engine = "libaio" if direct else "psync"
    return [
        fio,
        "--thread",  # one process: fio's jobs start their own sessions, and would wait forever for a killed parent
        "--output-format=json",
        f"--filename={file}",
        f"--size={size}",
        f"--ioengine={engine}",
        f"--direct={int(direct)}",
    ]


def _measure(
    fio: str, file: Path, size: int, reads: Sequence[ReadConfiguration], *, thorough: bool, direct: bool
) -> DiskFigures:
    write_s = _THOROUGH_WRITE_S if thorough else _WRITE_S
    (written,) = _jobs(write_command(fio, file, size, seconds=write_s, direct=direct))
    there = file.stat().st_size // _STEP_BYTES * _STEP_BYTES
    seconds = _THOROUGH_READ_S if thorough else _READ_S
    *jobs, random = _jobs(read_command(fio, file, there, reads, seconds=seconds, direct=direct))
    measured = tuple(
        MeasuredRead(configuration=read, mb_s=job["read"]["bw_bytes"] / 1e6)
        for read, job in zip(reads, jobs, strict=True)
    )
    return DiskFigures(
        read_mb_s=max(read.mb_s for read in measured),
        write_mb_s=written["write"]["bw_bytes"] / 1e6,
        random_write_iops=random["write"]["iops"],
        direct=direct,
        file_bytes=there,
        reads=measured,
        thorough=thorough,
    )


def _jobs(command: Sequence[str]) -> list[dict[str, Any]]:
    answer = run(command, timeout_s=_TIMEOUT_S, env=HUGE_PAGES).check("measuring the disk")
    try:
        jobs: list[dict[str, Any]] = json.loads(answer.stdout[answer.stdout.index("{") :])["jobs"]
    except (ValueError, KeyError) as error:
        raise CommandError(f"fio printed no figures: {answer.stdout[:200]!r}") from error
    return jobs
