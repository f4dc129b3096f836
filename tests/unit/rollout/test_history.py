"""What a service went through, by its records; and how two releases differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from releases import make_release

from tasks.core.digests import short
from tasks.core.errors import NotFoundError, WrongUseError
from tasks.core.records import Number, Record, new_record
from tasks.core.release import Release, ServiceFolder
from tasks.core.verdicts import StageName
from tasks.rollout.history import Difference, Figure, differences, figures, find_release, history


@pytest.fixture
def first(tmp_path: Path) -> Release:
    (tmp_path / "model.gguf").write_bytes(b"weights")
    return make_release(tmp_path / "bin" / "python", tmp_path / "model.gguf")


@pytest.fixture
def second(first: Release) -> Release:
    config = first.config.model_copy(update={"batch": 8})
    return first.model_copy(update={"config": config})


def rolled_out(release: Release, outcome: str = "serving", **more: Any) -> Record:
    result = {
        "verdict": outcome,
        "name": "chat",
        "target": "process",
        "action": "start",
        "release": release.id,
        "serving": release.id if outcome == "serving" else None,
        "previous": None,
        "endpoint": None,
    }
    by = {"by": more.pop("by")} if "by" in more else {}
    return record(outcome, {"inputs": {"release": release.id}, "result": {**result, **more}, **by})


def record(outcome: str, evidence: dict[str, Any], subject: str = "chat") -> Record:
    return new_record(
        stage=StageName.ROLLOUT,
        subject=subject,
        host_fingerprint="sha256:" + "0" * 64,
        inputs_digest="sha256:" + "1" * 64,
        outcome=outcome,
        seconds=1.5,
        evidence=evidence,
    )


def test_each_event_says_who_did_what_to_which_release(first: Release, second: Release) -> None:
    gone = "sha256:" + "d" * 64
    records = [
        rolled_out(first),
        rolled_out(second, "rolled_back", reason="the engine died"),
        rolled_out(first, by="rollback"),
        record("fault", {"inputs": {"release": gone}, "error": {"what": "the disk is full"}}),
        record("stopped", {"inputs": {"stop": "chat", "release": first.id}}),
        record("serving", {"inputs": {}}, subject="another"),
    ]
    events = history("chat", reversed(records), {first.id: first, second.id: second}, first.id)
    assert [(one.by, one.outcome, one.release, one.reason, one.batch) for one in events] == [
        ("deploy", "serving", first.id, None, 4),
        ("deploy", "rolled_back", second.id, "the engine died", 8),
        ("rollback", "serving", first.id, None, 4),
        ("deploy", "fault", gone, "the disk is full", None),
        ("stop", "stopped", first.id, None, 4),
    ]
    assert [one.serves for one in events] == [True, False, True, False, True]
    assert [one.kept for one in events] == [True, True, True, False, True]
    assert events[0].engine == "llama.cpp 2026.10"


def test_a_release_is_found_by_its_first_digits(first: Release, second: Release) -> None:
    kept = {first.id: first, second.id: second}
    for text in (short(first.id), first.id, first.id.removeprefix("sha256:")[:4]):
        assert find_release(text, kept, "chat") is first
    twins = {"sha256:abcd1" + "0" * 59: first, "sha256:abcd2" + "0" * 59: second}
    with pytest.raises(WrongUseError, match="names several releases of chat: abcd10000000, abcd20000000"):
        find_release("abcd", twins, "chat")
    with pytest.raises(WrongUseError, match="too short"):
        find_release("abc", twins, "chat")
    with pytest.raises(NotFoundError, match="chat has no kept release 0000") as caught:
        find_release("0000", {}, "chat")
    assert caught.value.fix == "list them: slipway history chat"


def test_what_decides_is_compared(first: Release, second: Release) -> None:
    spec = second.spec.model_copy(update={"engine_args": {"no-mmap": True}})
    changed = second.model_copy(update={"spec": spec, "engine_version": "2026.11"})
    assert set(differences(first, changed)) == {
        Difference(key="engine_args.no-mmap", before=None, after=True),
        Difference(key="release.engine_version", before="2026.10", after="2026.11"),
        Difference(key="release.config.batch", before=4, after=8),
    }
    assert differences(first, first) == ()


def test_what_was_measured_is_compared() -> None:
    def measured(stage: StageName, **values: float) -> Record:
        numbers = {name: Number(value=value, unit="token/s") for name, value in values.items()}
        return record("chosen", {}).model_copy(update={"stage": stage, "numbers": numbers})

    before = [measured(StageName.BATCHING, throughput=800, batch=4)]
    after = [measured(StageName.BATCHING, throughput=900), measured(StageName.STAGING, copied=1)]
    assert figures(before, after) == (
        Figure(name="throughput", unit="token/s", before=800, after=900),
        Figure(name="batch", unit="token/s", before=4, after=None),
    )


def test_releases_that_cannot_be_read_are_skipped(first: Release, second: Release, tmp_path: Path) -> None:
    folder = ServiceFolder(tmp_path / "services", "chat")
    assert folder.releases() == {}
    (folder.root / "releases").mkdir(parents=True)
    for release in (second, first):
        folder.release_file(release.id).write_text(release.document())
    (folder.root / "releases" / "damaged.json").write_text("{")
    assert folder.releases() == {first.id: first, second.id: second}
