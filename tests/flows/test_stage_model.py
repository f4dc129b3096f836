"""Staging as a flow: what the interface shows, and what a repeat does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from plain_safetensors import read_model
from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Failed
from pydantic import SecretStr
from swift_server import SwiftServer

from blocks.storage.object_storage import ObjectStorage
from blocks.storage.record_store import open_record_store
from flows.measure_disk import measure_disk
from flows.stage_model import is_retryable, stage_model
from tasks.core.errors import AccessError, ModelError, NetworkError
from tasks.core.settings import Settings
from tasks.core.verdicts import StageName
from tasks.staging.disk.models import DiskRequest
from tasks.staging.models import StagingRequest


def request(model: Path, **changes: object) -> StagingRequest:
    values = {"model": f"file:{model}", "shards": 2, "disk_benchmark": False}
    return StagingRequest.model_validate(values | changes)


def test_a_model_is_staged_then_cached_then_repaired(random_model: Path, slipway_home: Path) -> None:
    first = stage_model(request(random_model))
    assert (first.verdict, first.cached) == ("verified", False)
    assert first.result.model_dir.parent == slipway_home / "models"
    state = stage_model(request(random_model), return_state=True)
    assert isinstance(state, State)
    assert state.name == "Cached"
    harmed = first.result.model_dir / "model-00001-of-00002.safetensors"
    size = harmed.stat().st_size
    harmed.unlink()
    repaired = stage_model(request(random_model))
    assert repaired.result.restaged == (harmed.name,)
    assert repaired.result.copied_bytes == size
    assert repaired.result.manifest_digest == first.result.manifest_digest
    assert f"staged again: {harmed.name}" in repaired.result.findings[0]


def test_a_model_that_was_judged_by_earlier_rules_is_judged_again_and_not_copied(
    random_model: Path, slipway_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr("flows.stage_model.RULES", 1)
        first = stage_model(request(random_model))
    again = stage_model(request(random_model))
    assert not again.cached
    assert (again.result.copied_bytes, again.result.model_dir) == (0, first.result.model_dir)


def test_a_broken_model_fails_the_run_and_is_recorded(
    random_model: Path, tmp_path: Path, slipway_home: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(random_model, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ModelError, match="it is truncated"):
        stage_model(request(broken))
    (record,) = open_record_store(Settings.load()).list(StageName.STAGING)
    assert record.outcome == "fault"
    assert "it is truncated" in record.evidence["error"]["what"]
    assert not list((slipway_home / "models").glob("*"))


@pytest.mark.fio
def test_the_disk_is_measured_once_and_colours_the_verdict(
    random_model: Path, slipway_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = stage_model(request(random_model, disk_benchmark=True))
    assert first.result.disk is not None
    disk = measure_disk(DiskRequest(folder=slipway_home / "models"))
    assert disk.cached
    assert first.verdict == disk.verdict
    assert first.result.disk == disk.result.figures
    store = open_record_store(Settings.load())
    assert store.get(first.record).consulted == (disk.record,)
    assert not list(slipway_home.rglob("*.part"))

    newer = measure_disk(DiskRequest(folder=slipway_home / "models", fresh=True))
    again = stage_model(request(random_model, disk_benchmark=True))
    assert store.get(again.record).consulted == (newer.record,)
    assert again.result.copied_bytes == 0


def test_without_fio_a_model_is_staged_all_the_same(
    random_model: Path, slipway_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = stage_model(request(random_model, disk_benchmark=True))
    assert (outcome.verdict, outcome.result.disk) == ("verified", None)
    assert "the disk was not measured: the program fio is not installed" in outcome.result.findings[0]
    assert open_record_store(Settings.load()).list(StageName.DISK) == []


@pytest.mark.s3
def test_credentials_come_from_the_block_that_is_named(
    random_model: Path, slipway_home: Path, swift: SwiftServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    swift.upload(random_model, "from-block", "model")
    monkeypatch.setenv("SLIPWAY_S3_BLOCK", "models")
    wanted = StagingRequest(model="s3://from-block/model", disk_benchmark=False)
    with pytest.raises(AccessError, match="no object storage block 'models'"):
        stage_model(wanted)
    ObjectStorage(
        endpoint=swift.endpoint, access_key=swift.access_key, secret_key=SecretStr(swift.secret_key)
    ).save("models")
    outcome = stage_model(wanted)
    assert read_model(outcome.result.model_dir) == read_model(random_model)
    for record in (slipway_home / "records").rglob("*.json"):
        assert swift.secret_key not in record.read_text()


def test_only_faults_that_may_pass_are_tried_again() -> None:
    """The rule that Prefect asks between tries of `copy-shards`."""

    def tried_again(error: Exception) -> bool:
        state: State[object] = Failed(data=error)
        return is_retryable(None, None, state)

    assert tried_again(NetworkError("the server is away"))
    assert not tried_again(ModelError("truncated"))
    assert not tried_again(ValueError("a mistake"))


def test_it_runs_as_a_subflow(random_model: Path, slipway_home: Path) -> None:
    @flow
    def around() -> str:
        return stage_model(request(random_model)).result.manifest_digest

    assert around().startswith("sha256:")
