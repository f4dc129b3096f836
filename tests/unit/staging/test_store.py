"""Staged models end by least recent use, and never while anybody needs them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.core.digests import short
from tasks.core.errors import RecordError
from tasks.core.files import file_lock
from tasks.core.manifest import MANIFEST_FILE, Manifest, StagedFile
from tasks.core.settings import Settings
from tasks.staging.apply import lock_of
from tasks.staging.store import (
    FRESH_S,
    StagedModel,
    choose,
    collect,
    in_use,
    in_use_by_path,
    list_models,
    make_room,
    remove,
    touch_used,
)

KB = 1 << 10
BLOCK = 64 * KB


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, records="", registry="", s3_endpoint=None)


def let_hours_pass(settings: Settings, folder: Path, hours: float) -> None:
    then = time.time() - hours * 3600
    os.utime(lock_of(folder, settings.leases).with_suffix(".used"), (then, then))


def model(settings: Settings, name: str, *, hours_ago: float) -> Path:
    """A staged model of about 64 KiB that was used that long ago."""
    folder = settings.models / name
    folder.mkdir(parents=True)
    (folder / "w").write_bytes(name[0].encode() * BLOCK)
    file = StagedFile.of("w", BLOCK, "weights", [name[0].encode().hex() * 32])
    manifest = Manifest(source=f"file:/{name}", source_digest="sha256:0", files=(file,))
    (folder / MANIFEST_FILE).write_text(manifest.render())
    touch_used(folder, settings)
    let_hours_pass(settings, folder, hours_ago)
    return folder


def nobody(_: Path) -> list[int]:
    return []


def names(models: tuple[StagedModel, ...]) -> list[str]:
    return [one.folder.name for one in models]


def test_the_least_recently_used_go_first(settings: Settings) -> None:
    for name, hours in [("a", 2), ("b", 9), ("c", 5)]:
        model(settings, name, hours_ago=hours)
    everything = list_models(settings, nobody)
    assert names(everything) == ["b", "c", "a"]
    size = everything[0].size_bytes
    assert names(choose(everything, 1)) == ["b"]
    assert names(choose(everything, size + 1)) == ["b", "c"]
    assert choose(everything, 0) == ()
    assert names(collect(settings, nobody, limit_bytes=2 * size, dry_run=True)) == ["b"]
    assert (settings.models / "b").exists()
    assert names(collect(settings, nobody, limit_bytes=2 * size)) == ["b"]
    assert sorted(path.name for path in settings.models.iterdir()) == ["a", "c"]


def test_what_anybody_needs_stays_and_says_why(settings: Settings) -> None:
    named = model(settings, "named", hours_ago=50)
    leased = model(settings, "leased", hours_ago=40)
    written = model(settings, "written", hours_ago=30)
    running = model(settings, "running", hours_ago=20)
    model(settings, "fresh", hours_ago=FRESH_S / 3600 - 0.1)
    model(settings, "idle", hours_ago=2)
    releases = settings.services / "chat" / "releases"
    releases.mkdir(parents=True)
    (releases / "1.json").write_text(json.dumps({"model_digest": Manifest.read(named).digest}))
    use = lock_of(leased, settings.leases).with_suffix(".used")
    with (
        file_lock(use, wait=False, holder="", shared=True),
        file_lock(lock_of(written, settings.leases), wait=False, holder=""),
    ):
        found = list_models(settings, lambda folder: [1] * (folder == running))
        assert {one.folder.name: one.holder for one in found} == {
            "named": "a release of chat names it",
            "leased": "a run uses it",
            "written": "a run uses it",
            "running": "a process uses it",
            "fresh": "it was used within the last hour",
            "idle": "",
        }
        gone = collect(settings, lambda folder: [1] * (folder == running), limit_bytes=0)
        assert names(gone) == ["idle"]
    (releases / "1.json").write_text("{")
    with pytest.raises(RecordError, match=r"the release .*1\.json cannot be read"):
        list_models(settings, nobody)


def candidate(settings: Settings, of: Path, form: str) -> Path:
    folder = settings.candidates / f"{short(Manifest.read(of).digest)}-{form}-abcdef"
    folder.mkdir(parents=True)
    (folder / "model.gguf").write_bytes(b"c" * BLOCK)
    return folder


def test_candidates_count_and_go_with_the_model_they_were_made_of(settings: Settings) -> None:
    old, served = model(settings, "old", hours_ago=9), model(settings, "served", hours_ago=8)
    alone = list_models(settings, nobody)[0].size_bytes
    gone = [candidate(settings, old, "f16"), candidate(settings, old, "q8_0")]
    kept = candidate(settings, served, "q8_0")

    def engine(folder: Path) -> list[int]:
        return [1] * (folder == kept)

    found = list_models(settings, engine)
    assert [one.holder for one in found] == ["", "a process uses it"]
    assert found[0].size_bytes >= alone + 2 * BLOCK
    assert found[0].candidates == tuple(sorted(gone))
    assert names(collect(settings, engine, limit_bytes=0)) == ["old"]
    assert list(settings.candidates.iterdir()) == [kept]
    assert list(settings.models.iterdir()) == [served]


def test_candidates_of_a_model_that_is_staged_twice_go_with_the_last_of_them(settings: Settings) -> None:
    """The same content from two sources, one of which is being tuned."""
    old, tuned = model(settings, "one", hours_ago=9), model(settings, "other", hours_ago=8)
    made = candidate(settings, old, "q8_0")
    with in_use(tuned, settings):
        assert names(collect(settings, nobody, limit_bytes=0)) == ["one"]
        assert made.exists()
    let_hours_pass(settings, tuned, 2)
    assert names(collect(settings, nobody, limit_bytes=0)) == ["other"]
    assert not made.exists()


def test_what_a_killed_removal_left_goes_with_the_next(settings: Settings) -> None:
    kept = model(settings, "kept", hours_ago=0)
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1, text=True)
    for parent in (settings.models, settings.candidates):
        half = parent / f"gone.{ended.stdout.strip()}.part"
        half.mkdir(parents=True)
        (half / "w").write_bytes(b"w")
    assert make_room(settings, nobody, settings.models / "new", size_bytes=1, missing_bytes=1) == ()
    assert list(settings.models.iterdir()) == [kept]
    assert list(settings.candidates.iterdir()) == []


def test_what_was_taken_since_it_was_looked_at_stays(settings: Settings) -> None:
    folder = model(settings, "a", hours_ago=9)
    (seen,) = list_models(settings, nobody)
    with in_use(folder, settings), in_use(folder, settings):
        assert not remove(seen, settings)
    assert not remove(seen, settings)  # used since
    (seen,) = list_models(settings, nobody)
    assert remove(seen, settings)
    assert not remove(seen, settings)
    assert not folder.exists()


def test_a_use_counts_until_it_ends_however_it_ends(settings: Settings) -> None:
    folder = model(settings, "a", hours_ago=9)
    for ends_with in (None, KeyError("a fault")):
        with contextlib.suppress(KeyError), in_use(folder, settings):
            let_hours_pass(settings, folder, 9)
            assert list_models(settings, nobody)[0].holder == "a run uses it"
            if ends_with:
                raise ends_with
        assert list_models(settings, nobody)[0].holder == "it was used within the last hour"


def test_a_path_is_of_the_model_that_it_lies_in_or_that_its_candidate_was_made_of(
    settings: Settings, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        model(settings, name, hours_ago=9)
    made = candidate(settings, settings.models / "b", "q8_0")
    linked = tmp_path / "linked-home"
    linked.symlink_to(settings.home)
    for path, held in [
        (settings.models / "a", ["a"]),
        (settings.models / "a" / "w", ["a"]),
        (made, ["b"]),
        (made / "model.gguf", ["b"]),
        (linked / settings.models.name / "a" / "w", ["a"]),
        (settings.models, []),
        (settings.candidates, []),
        (settings.candidates / "000000000000-f16-abcdef", []),
        (tmp_path / "a", []),
    ]:
        with in_use_by_path(path, settings):
            for name in held:
                let_hours_pass(settings, settings.models / name, 9)
            found = [one.folder.name for one in list_models(settings, nobody) if one.holder]
            assert found == held, path
        for name in held:
            let_hours_pass(settings, settings.models / name, 9)


def test_room_is_made_for_the_limit_and_for_the_disk(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, hours in [("a", 9), ("b", 8), ("c", 7)]:
        model(settings, name, hours_ago=hours)
    size = list_models(settings, nobody)[0].size_bytes
    new = settings.models / "new"

    def make(settings: Settings, *, size_bytes: int = BLOCK, missing: int = 0) -> list[str]:
        return names(make_room(settings, nobody, new, size_bytes=size_bytes, missing_bytes=missing))

    assert make(settings) == []
    monkeypatch.setattr("tasks.staging.store._free_bytes", lambda _: 0)
    assert make(settings, missing=3 * size + 1) == []  # would not help
    assert make(settings, missing=size) == ["a"]
    monkeypatch.undo()
    limited = Settings(
        home=settings.home, records="", registry="", s3_endpoint=None, models_limit_bytes=2 * size
    )
    assert make(limited, size_bytes=size) == ["b"]
    touch_used(settings.models / "c", settings)
    assert make(limited, size_bytes=2 * size) == []  # what is left is in use
