"""A disk below the baselines: a warning, or a refusal where the spec says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from blocks.host import fio
from blocks.storage.record_store import open_record_store
from flows.stage_model import stage_model
from tasks.core.errors import MissingToolError
from tasks.core.settings import Settings
from tasks.core.spec_kinds import DiskFloor
from tasks.core.verdicts import StageName
from tasks.staging.disk.models import DiskFigures
from tasks.staging.models import StagingRequest

pytestmark = pytest.mark.server


def request(model: Path, floor: DiskFloor) -> StagingRequest:
    return StagingRequest(model=f"file:{model}", disk_floor=floor)


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """fio is there, and finds the disk slow on every machine that runs this."""
    figures = DiskFigures(read_mb_s=900, write_mb_s=800, random_write_iops=700_000, direct=True, file_bytes=1)
    monkeypatch.setattr(fio, "program", lambda: "fio")
    monkeypatch.setattr("flows.measure_disk.measure", lambda folder, *, thorough: figures)


def test_a_slow_disk_is_refused_where_the_spec_says_so_and_nothing_is_copied(
    random_model: Path, slipway_home: Path, slow_disk: None
) -> None:
    warned = stage_model(request(random_model, DiskFloor.WARN))
    assert (warned.verdict, warned.says_no) == ("slow", False)
    for _ in range(2):  # a refusal is no result that could stand in for a later one
        refused = stage_model(request(random_model, DiskFloor.BLOCK))
        assert (refused.verdict, refused.says_no, refused.cached) == ("blocked", True, False)
    assert refused.headline.startswith("sequential read is 900 MB/s, the baseline 7000")
    assert refused.result.copied_bytes == 0
    assert "staging.disk_floor=warn" in refused.result.findings[-1]
    assert stage_model(request(random_model, DiskFloor.WARN)).cached


def test_a_disk_that_cannot_be_measured_is_refused_where_the_spec_asks_for_a_floor(
    random_model: Path, slipway_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match="apt install fio"):
        stage_model(request(random_model, DiskFloor.BLOCK))
    (record,) = open_record_store(Settings.load()).list(StageName.STAGING)
    assert record.outcome == "fault"
