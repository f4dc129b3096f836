"""What fio is asked, and what it measures where it is installed."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from inline_snapshot import snapshot

from blocks.host import fio
from tasks.core.errors import CommandError, MissingToolError
from tasks.staging.disk.models import ReadConfiguration

pytestmark = pytest.mark.slow


def test_writes_are_measured_without_preallocation() -> None:
    assert fio.write_command("fio", Path("/d/x.part"), 1 << 30, seconds=2.0, direct=True) == snapshot(
        [
            "fio",
            "--thread",
            "--output-format=json",
            "--filename=/d/x.part",
            "--size=1073741824",
            "--ioengine=libaio",
            "--direct=1",
            "--fallocate=none",
            "--end_fsync=1",
            "--runtime=2.0",
            "--name=write",
            "--rw=write",
            "--bs=4M",
            "--iodepth=8",
        ]
    )


def test_reads_run_one_after_the_other_and_random_writes_last() -> None:
    reads = (
        ReadConfiguration(block_bytes=4 << 20, depth=8),
        ReadConfiguration(block_bytes=16 << 20, depth=4),
    )
    command = fio.read_command("fio", Path("/d/x.part"), 1 << 30, reads, seconds=0.8, direct=False)
    assert command[5:] == snapshot(
        [
            "--ioengine=psync",
            "--direct=0",
            "--time_based",
            "--name=read-0",
            "--rw=read",
            "--bs=4M",
            "--iodepth=8",
            "--runtime=0.8",
            "--stonewall",
            "--name=read-1",
            "--rw=read",
            "--bs=16M",
            "--iodepth=4",
            "--runtime=0.8",
            "--stonewall",
            "--name=random",
            "--rw=randwrite",
            "--bs=4k",
            "--iodepth=64",
            "--numjobs=2",
            "--runtime=1.2",
            "--group_reporting",
            "--stonewall",
        ]
    )


def test_a_thorough_measurement_tries_more() -> None:
    assert [str(one) for one in fio.read_configurations(thorough=False)] == snapshot(
        ["4 MiB x 4", "2 MiB x 16", "1 MiB x 32"]
    )
    many = fio.read_configurations(thorough=True)
    assert len(many) == len(set(many)) == 25
    assert {(one.block_bytes >> 20, one.depth) for one in many} >= {(1, 1), (16, 32)}


def test_the_file_takes_at_most_a_quarter_of_what_is_free() -> None:
    assert fio.file_bytes(100 << 30) == 1 << 30
    assert fio.file_bytes(1 << 30) == 256 << 20
    assert fio.file_bytes(100 << 30, 8 << 30) == 8 << 30
    assert fio.file_bytes((256 << 20) - 1) is None


@pytest.mark.fio
def test_a_disk_is_measured_and_nothing_stays_behind(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    figures = fio.measure(folder)
    assert min(figures.read_mb_s, figures.write_mb_s, figures.random_write_iops) > 0
    assert figures.file_bytes % (16 << 20) == 0
    assert figures.read_mb_s == max(read.mb_s for read in figures.reads)
    assert figures.read_by in [read.configuration for read in figures.reads]
    assert list(folder.iterdir()) == []


def program_at(folder: Path, lines: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "fio"
    path.write_text(f"#!{sys.executable}\n{lines}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.fio
def test_where_direct_io_is_refused_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real fio, behind a file system's refusal: its own words, its own exit status."""
    real = shutil.which("fio")
    refuse = "import os, sys\nif '--direct=1' in sys.argv: sys.exit('fio: destination does not support O_DIRECT')\n"
    program_at(tmp_path, f"{refuse}os.execv({real!r}, sys.argv)", monkeypatch)
    figures = fio.measure(tmp_path / "disk")
    assert not figures.direct
    assert figures.write_mb_s > 0


def test_a_fio_that_fails_or_prints_no_figures_is_a_clear_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program_at(tmp_path, "raise SystemExit('no such engine')", monkeypatch)
    with pytest.raises(CommandError, match="measuring the disk failed: fio exited with 1"):
        fio.measure(tmp_path / "disk")
    program_at(tmp_path, "print('nothing')", monkeypatch)
    with pytest.raises(CommandError, match="fio printed no figures"):
        fio.measure(tmp_path / "disk")
    assert list((tmp_path / "disk").iterdir()) == []


def test_without_fio_it_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError) as error:
        fio.measure(tmp_path)
    assert str(error.value) == snapshot("the program fio is not installed (install it: apt install fio)")
