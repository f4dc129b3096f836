"""Records and the stores' common behaviour."""

from __future__ import annotations

from pathlib import Path

import pytest

from blocks.record_store import FolderRecordStore, open_record_store
from tasks.core.errors import NotFoundError, RecordError
from tasks.core.records import Number, Record, latest_good, new_record
from tasks.core.settings import Settings
from tasks.core.verdicts import FAULT, StageName


def record(outcome: str = "sound", inputs: str = "sha256:1", host: str = "sha256:h") -> Record:
    return new_record(
        stage=StageName.ENVIRONMENT,
        subject="tiny",
        host_fingerprint=host,
        inputs_digest=inputs,
        outcome=outcome,
        seconds=1.5,
        numbers={"build_s": Number(value=1.25, unit="s")},
        evidence={"result": {"verdict": outcome}},
        consulted=("01A",),
    )


def test_a_record_survives_the_folder(tmp_path: Path) -> None:
    store = FolderRecordStore(tmp_path)
    made = record()
    store.put(made)
    assert store.get(made.id) == made
    assert list(store.list()) == list(store.list(StageName.ENVIRONMENT)) == [made]
    assert list(store.list(StageName.HEALTH)) == []


def test_a_record_is_never_overwritten(tmp_path: Path) -> None:
    store = FolderRecordStore(tmp_path)
    made = record()
    store.put(made)
    with pytest.raises(RecordError, match=made.id):
        store.put(made)


def test_records_come_oldest_first(tmp_path: Path) -> None:
    store = FolderRecordStore(tmp_path)
    made = [record() for _ in range(20)]
    for one in reversed(made):
        store.put(one)
    assert [one.id for one in store.list()] == sorted(one.id for one in made)


def test_an_unknown_or_broken_record_is_named(tmp_path: Path) -> None:
    store = FolderRecordStore(tmp_path)
    with pytest.raises(NotFoundError, match="no record 01XYZ"):
        store.get("01XYZ")
    broken = tmp_path / "environment" / "01B.json"
    broken.parent.mkdir()
    broken.write_text('{"schema": "slipway.record/1"}')
    with pytest.raises(RecordError, match=r"01B\.json is not a record"):
        store.list()


def test_only_a_good_record_with_the_same_inputs_stands_in_for_the_work() -> None:
    old, new = record(), record()
    records = [old, new, record(FAULT), record("conflicting"), record(inputs="sha256:2"), record("cancelled")]
    assert latest_good(records, inputs_digest="sha256:1") == max(old, new, key=lambda one: one.id)
    assert latest_good(records, inputs_digest="sha256:1", host_fingerprint="sha256:other") is None
    assert latest_good(records, inputs_digest="sha256:3") is None


def test_the_store_is_the_one_that_the_settings_name(slipway_home: Path) -> None:
    store = open_record_store(Settings.load())
    assert isinstance(store, FolderRecordStore)
    assert store.root == slipway_home / "records"
