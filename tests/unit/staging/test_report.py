"""A result as people read it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from inline_snapshot import snapshot

from tasks.core.verdicts import StagingVerdict
from tasks.staging import report
from tasks.staging.disk import report as whole
from tasks.staging.disk.models import DiskFigures, DiskResult
from tasks.staging.models import StagingResult

FIGURES = DiskFigures(
    read_mb_s=1087.3, write_mb_s=1282.8, random_write_iops=62857.7, direct=True, file_bytes=1 << 30
)


def result(**changes: Any) -> StagingResult:
    values: dict[str, Any] = {
        "verdict": StagingVerdict.SLOW,
        "model_dir": Path("/home/models/abc-auto"),
        "manifest_digest": "sha256:0123456789abcdef",
        "source": "s3://bucket/tiny/versions/3",
        "source_digest": "sha256:fedcba",
        "version": "3",
        "size_bytes": 5_800_000,
        "shards": 2,
        "copied_bytes": 5_800_000,
        "copy_seconds": 0.25,
        "disk": FIGURES,
        "findings": ("training_args.bin has pickled weights and was not copied",),
    }
    return StagingResult(**{**values, **changes})


def test_the_headline_says_what_was_done() -> None:
    assert [
        report.headline(result()),
        report.headline(result(shards=1, copied_bytes=0)),
        report.headline(result(restaged=("model-00002-of-00002.safetensors",))),
        report.headline(result(damaged=("model-00002-of-00002.safetensors",))),
    ] == snapshot(
        [
            "2 shards, 5.8 MB; 5.8 MB copied; disk reads 1,087 MB/s",
            "1 shard, 5.8 MB; nothing to copy; disk reads 1,087 MB/s",
            "2 shards, 5.8 MB; restaged model-00002-of-00002.safetensors; disk reads 1,087 MB/s",
            "model-00002-of-00002.safetensors has changed at the source since it was staged",
        ]
    )


def test_the_artifact_holds_the_disk_beside_its_baselines() -> None:
    assert report.markdown(result()) == snapshot(
        """\
# Staging: slow

2 shards, 5.8 MB; 5.8 MB copied; disk reads 1,087 MB/s.

| fact | value |
|---|---|
| source | `s3://bucket/tiny/versions/3` version 3 |
| folder | `/home/models/abc-auto` |
| manifest | `0123456789ab` |
| size | 5.8 MB in 2 shards |
| copied | 5.8 MB in 0.25 s |

## Disk

| disk | measured | baseline |
|---|---:|---:|
| sequential read | 1,087 MB/s | 7,000 MB/s |
| sequential write | 1,283 MB/s |  |
| random write, 4 KiB | 62,858 IOPS | 500,000 IOPS |

## Remarks

- training_args.bin has pickled weights and was not copied

Read every file again: `slipway stage verify /home/models/abc-auto`.
"""
    )
    assert "disk" not in report.markdown(result(disk=None))


def test_numbers_have_units() -> None:
    numbers = report.numbers(result())
    assert {name: (number.value, number.unit) for name, number in numbers.items()} == snapshot(
        {
            "size": (5800000.0, "B"),
            "shards": (2.0, "1"),
            "copied": (5800000.0, "B"),
            "copy_time": (0.25, "s"),
            "disk_read": (1087.3, "MB/s"),
            "disk_write": (1282.8, "MB/s"),
            "disk_random_write": (62857.7, "1/s"),
        }
    )
    assert "disk_read" not in report.numbers(result(disk=None))


def test_a_disk_has_a_report_of_its_own() -> None:
    disk = DiskResult(
        verdict=StagingVerdict.SLOW, mount="/", at=datetime(2026, 1, 1, tzinfo=UTC), figures=FIGURES
    )
    assert whole.headline(disk) == snapshot("/ reads 1087 MB/s, writes 1283 MB/s, 62858 random writes/s")
    assert whole.markdown(disk).startswith("# Disk: slow")
    assert whole.numbers(disk).keys() == {"disk_read", "disk_write", "disk_random_write"}
