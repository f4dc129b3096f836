"""A copy's progress: lines for people, an artifact for the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prefect import flow, get_client
from waiting import wait_until

from blocks.prefect import artifacts, progress
from blocks.prefect.progress import show_copy
from flows.stage_model import stage_model
from tasks.core.progress import advance, listen, to_log
from tasks.core.verdicts import StageName
from tasks.staging.models import StagingRequest

pytestmark = pytest.mark.server


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Looks come fast; what they say."""
    lines: list[str] = []
    monkeypatch.setattr(progress, "PERIOD_S", 0.005)
    listen(lambda stage, line: lines.append(f"{stage}: {line}"))
    yield lines
    listen(to_log)  # fixtures share one context


def copy_half_and_all(said: list[str]) -> None:
    """As a flow: a parameter would be copied, and hear nothing."""

    @flow(name="copy-half-and-all")
    def run() -> None:
        with show_copy(StageName.STAGING, "half and all", 2_000_000_000):
            advance(1_000_000_000)
            wait_until(lambda: said, "the first line")
            advance(1_000_000_000)

    run()


def shown(key: str) -> list[tuple[object, str | None]]:
    with get_client(sync_client=True) as client:
        return [(found.data, found.description) for found in client.read_artifacts() if found.key == key]


def test_a_run_shows_its_copy_in_one_artifact_that_ends_at_all(said: list[str]) -> None:
    copy_half_and_all(said)
    assert said[0].startswith("staging: 1.0 of 2.0 GB, ")
    assert said[0].endswith(" s left")
    ((percent, description),) = shown("staging-half-and-all-progress")
    assert percent == 100
    assert (description or "").startswith("half and all: 2.0 of 2.0 GB")


def test_outside_a_run_there_are_lines_only(said: list[str]) -> None:
    with show_copy(StageName.STAGING, "alone", 2):
        advance(1)
        wait_until(lambda: len(said) > 1, "several lines")
    assert shown("staging-alone-progress") == []


def test_a_server_that_is_gone_does_not_hinder_the_copy(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(artifacts, "create_progress_artifact", refused)
    copy_half_and_all(said)
    assert said


def test_staging_counts_what_it_copies(
    random_model: Path, slipway_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    monkeypatch.setattr("tasks.core.progress.Meter.add", lambda meter, size: counted.append(size))
    outcome = stage_model(StagingRequest(model=f"file:{random_model}", disk_benchmark=False))
    assert sum(counted) == outcome.result.copied_bytes
