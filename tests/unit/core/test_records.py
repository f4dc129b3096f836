"""Records and the stores' common behaviour."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from ulid import ULID

from blocks.storage.record_store import FolderRecordStore, open_record_store
from tasks.core.errors import NotFoundError, RecordError
from tasks.core.progress import listen
from tasks.core.records import Number, Record, RecordStore, new_record, parse_record, standing
from tasks.core.settings import Settings
from tasks.core.verdicts import FAULT, StageName


def record(
    outcome: str = "sound",
    inputs: str = "sha256:1",
    host: str = "sha256:h",
    store: RecordStore | None = None,
) -> Record:
    return new_record(
        store=store,
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


def test_what_is_read_back_from_a_record_is_not_changed_by_its_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "known to this process")
    place = "/srv/sk-Prod0123456789abcdefghij/env/bin/python token=x"
    held = {"python_path": f"{place} known to this process", "source": "s3://me:word@bucket/x"}
    made = new_record(
        stage=StageName.ENVIRONMENT,
        subject="tiny",
        host_fingerprint="sha256:h",
        inputs_digest="sha256:1",
        outcome="sound",
        seconds=1.5,
        evidence={"inputs": held, "result": held, "error": {"what": place}},
    )
    hidden = {"python_path": f"{place} ***", "source": "s3://***@bucket/x"}
    assert made.evidence["inputs"] == made.evidence["result"] == hidden
    assert made.evidence["error"] == {"what": "/srv/sk-Prod0123456789abcdefghij/env/bin/python token=***"}


def test_a_record_survives_the_folder(tmp_path: Path) -> None:
    store = FolderRecordStore(tmp_path)
    made = record()
    store.put(made)
    assert store.get(made.id) == made
    assert list(store.list()) == list(store.list(StageName.ENVIRONMENT)) == [made]
    assert list(store.list(StageName.HEALTH)) == []


def test_the_latest_answer_is_found_without_reading_older_ones(tmp_path: Path) -> None:
    store = FolderRecordStore(tmp_path)
    for outcome, subject in (("sound", "tiny"), ("conflict", "tiny"), (FAULT, "tiny"), ("sound", "other")):
        store.put(record(outcome, store=store).model_copy(update={"subject": subject}))
    (oldest, *_) = sorted((tmp_path / "environment").iterdir())
    oldest.write_text("damaged")
    found = store.latest(StageName.ENVIRONMENT, "tiny")
    assert found is not None
    assert found.outcome == "conflict"
    assert store.latest(StageName.HEALTH, "tiny") is None


def test_fields_of_another_version_are_ignored(tmp_path: Path) -> None:
    document = json.loads(record().to_json()) | {"supersedes": None}
    assert parse_record(json.dumps(document).encode(), "x") == Record.model_validate(document)


def test_a_new_record_comes_last_whatever_the_clock_says(tmp_path: Path) -> None:
    """The clock was a month ahead and was set back, as where a machine starts with a wrong one."""
    store = FolderRecordStore(tmp_path)
    ahead = ULID.from_datetime(datetime.now(UTC) + timedelta(days=30))
    first = record().model_copy(update={"id": str(ahead)})
    store.put(first)
    store.put(record("sound").model_copy(update={"stage": StageName.HEALTH}))
    made = [first.id]
    for stage in (StageName.ENVIRONMENT, StageName.REGISTRY, StageName.ENVIRONMENT):
        late = record(store=store).model_copy(update={"stage": stage})
        store.put(late)
        made.append(late.id)
    assert made == sorted(set(made))
    found = standing(store.list(StageName.ENVIRONMENT), inputs_digest="sha256:1")
    assert found is not None
    assert found.id == made[-1]


@pytest.mark.parametrize("name", ["01X-1.json", "7ZZZZZZZZZZZZZZZZZZZZZZZZZ-1.json", "notes.json"])
def test_an_object_that_is_no_record_does_not_decide_ids(tmp_path: Path, name: str) -> None:
    store = FolderRecordStore(tmp_path)
    (tmp_path / "environment").mkdir()
    (tmp_path / "environment" / name).write_text("{}")
    assert record(store=store).id < str(ULID.from_datetime(datetime.now(UTC) + timedelta(minutes=5)))


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
    (tmp_path / "environment").mkdir()
    (tmp_path / "environment" / "01B-1.json").write_text('{"schema": "slipway.record/1"}')
    with pytest.raises(RecordError, match=r"01B-1\.json is not a record"):
        store.get("01B")


def test_a_broken_record_is_told_of_and_hides_no_other(tmp_path: Path) -> None:
    store = FolderRecordStore(tmp_path)
    made = record()
    store.put(made)
    (tmp_path / "environment" / "01B-1.json").write_bytes(b"\xff not even JSON")
    heard: list[str] = []
    listen(lambda stage, line: heard.append(f"{stage}: {line}"))
    assert list(store.list()) == list(store.with_inputs(StageName.ENVIRONMENT, "sha256:1")) == [made]
    assert [
        line for line in heard if line.startswith("knowledge: skipped: ") and "01B-1.json" in line
    ] == heard
    assert len(heard) == 2


def test_records_with_other_inputs_are_not_read(tmp_path: Path) -> None:
    store = FolderRecordStore(tmp_path)
    first, other, second = record(), record(inputs="sha256:2"), record()
    for one in (first, other, second):
        store.put(one)
    (tmp_path / other.path).write_text("would be told of if it were read")
    heard: list[str] = []
    listen(lambda _, line: heard.append(line))
    assert list(store.with_inputs(StageName.ENVIRONMENT, "sha256:1")) == sorted(
        [first, second], key=lambda one: one.id
    )
    assert not heard


def test_of_many_records_the_newest_are_read(tmp_path: Path) -> None:
    store = FolderRecordStore(tmp_path)
    made = sorted((record() for _ in range(3)), key=lambda one: one.id)
    for one in made:
        store.put(one)
    (tmp_path / made[0].path).write_text("would be told of if it were read")
    heard: list[str] = []
    listen(lambda _, line: heard.append(line))
    assert list(store.with_inputs(StageName.ENVIRONMENT, "sha256:1", newest=2)) == made[1:]
    assert list(store.with_inputs(StageName.ENVIRONMENT, "sha256:1", newest=9))[-2:] == made[1:]
    assert len(heard) == 1


HISTORIES = {
    ("sound",): 0,
    ("sound", "sound"): 1,
    ("sound", "conflicting"): None,
    ("sound", "conflicting", "sound"): 2,
    ("sound", FAULT): 0,
    ("sound", "cancelled", FAULT, FAULT): 0,
    ("sound", "conflicting", FAULT): None,
    (FAULT,): None,
    (): None,
}


@pytest.mark.parametrize("outcomes", HISTORIES, ids=lambda outcomes: "-".join(outcomes) or "none")
def test_the_newest_answer_decides_whether_a_record_stands_in_for_the_work(outcomes: tuple[str, ...]) -> None:
    made = [
        record(outcome).model_copy(update={"id": f"01{number}"}) for number, outcome in enumerate(outcomes)
    ]
    other = record(inputs="sha256:2")
    found = standing([other, *reversed(made)], inputs_digest="sha256:1")
    wanted = HISTORIES[outcomes]
    assert found == (None if wanted is None else made[wanted])
    assert standing(made, inputs_digest="sha256:1", host_fingerprint="sha256:other") is None
    assert standing(made, inputs_digest="sha256:3") is None


def test_the_store_is_the_one_that_the_settings_name(slipway_home: Path) -> None:
    store = open_record_store(Settings.load())
    assert isinstance(store, FolderRecordStore)
    assert store.root == slipway_home / "records"
