"""Which environments go, and which stay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from blocks.processes.environment_users import running_below
from tasks.core.errors import BusyError, RecordError
from tasks.core.files import file_lock
from tasks.core.settings import Settings
from tasks.environment.files import MARKER, held, touch_used
from tasks.environment.garbage import collect

DAY = 86_400.0


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path, "", "", None)


def environment(settings: Settings, name: str, *, unused_days: float = 30) -> Path:
    folder = settings.environments / name
    folder.mkdir(parents=True)
    (folder / MARKER).write_text("{}")
    (folder / "module.py").write_bytes(b"x" * 1000)
    then = (folder / MARKER).stat().st_mtime - unused_days * DAY
    for path in (folder / MARKER, folder):
        os.utime(path, (then, then))
    return folder


def release(settings: Settings, text: str) -> None:
    document = settings.services / "chat" / "releases" / "1.json"
    document.parent.mkdir(parents=True)
    document.write_text(text)


def gone(settings: Settings, **options: bool) -> list[str]:
    return [one.path.name for one in collect(settings, lambda _: (), keep_s=14 * DAY, **options)]


def test_what_nobody_needs_goes(settings: Settings) -> None:
    folder = environment(settings, "aaaaaaaaaaaa")
    (one,) = collect(settings, running_below, keep_s=14 * DAY)
    assert (one.path, one.size_bytes) == (folder, 1002)
    assert one.reason == "no release names it, and it was not used for 30.0 days"
    assert list(settings.environments.iterdir()) == []


def test_a_dry_run_only_tells(settings: Settings) -> None:
    folder = environment(settings, "aaaaaaaaaaaa")
    assert gone(settings, dry_run=True) == ["aaaaaaaaaaaa"]
    assert folder.exists()


def test_what_a_release_names_stays_whatever_its_age(settings: Settings) -> None:
    folder = environment(settings, "aaaaaaaaaaaa", unused_days=1000)
    environment(settings, "bbbbbbbbbbbb")
    release(settings, f'{{"environment_path": "{folder}"}}')
    assert gone(settings) == ["bbbbbbbbbbbb"]
    assert folder.exists()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"environment_path": 3}', "\x00"])
def test_a_release_that_cannot_be_read_holds_all(settings: Settings, text: str) -> None:
    folder = environment(settings, "aaaaaaaaaaaa")
    release(settings, text)
    with pytest.raises(RecordError, match="so what it needs is not known"):
        gone(settings)
    assert folder.exists()


def test_what_was_used_lately_stays(settings: Settings) -> None:
    environment(settings, "aaaaaaaaaaaa", unused_days=13)
    old = environment(settings, "bbbbbbbbbbbb")
    touch_used(old)
    assert gone(settings) == []


def test_what_a_run_holds_stays(settings: Settings) -> None:
    folder = environment(settings, "aaaaaaaaaaaa")
    with held(folder, settings):
        assert gone(settings) == []
    assert gone(settings) == ["aaaaaaaaaaaa"]


def test_while_a_service_is_deployed_all_stay(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.core.leases.WAIT_S", 0.0)
    environment(settings, "aaaaaaaaaaaa")
    with (
        file_lock(settings.service_lease("chat"), wait=False, holder="the test"),
        pytest.raises(BusyError, match="already working on the service chat"),
    ):
        gone(settings)
    assert gone(settings) == ["aaaaaaaaaaaa"]


def test_what_something_runs_out_of_stays(settings: Settings) -> None:
    folder = environment(settings, "aaaaaaaaaaaa")
    program = folder / "python"
    program.symlink_to(sys.executable)
    with subprocess.Popen([program, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert list(running_below(folder)) == [process.pid]
        assert not collect(settings, running_below, keep_s=14 * DAY)
        process.communicate(b"\n")
    assert len(collect(settings, running_below, keep_s=14 * DAY)) == 1


@pytest.mark.parametrize("kind", ["", ".old", ".proof", ".4194305"], ids=["build", "old", "proof", "removal"])
def test_what_a_killed_run_left_goes(settings: Settings, kind: str) -> None:
    left = settings.environments / f"aaaaaaaaaaaa{kind}.part"
    left.mkdir(parents=True)
    (left / "module.py").write_bytes(b"x")
    assert gone(settings, dry_run=True) == []
    assert left.exists()
    assert gone(settings) == []
    assert not left.exists()


def test_what_a_run_builds_now_stays(settings: Settings) -> None:
    left = settings.environments / f"aaaaaaaaaaaa.{os.getpid()}.part"
    left.mkdir(parents=True)
    with held(settings.environments / "aaaaaaaaaaaa", settings):
        assert gone(settings) == []
        assert left.exists()


def test_a_home_without_environments_is_clean(settings: Settings) -> None:
    assert gone(settings) == []


def test_a_release_that_spells_the_home_otherwise_keeps_its_environment(
    settings: Settings, tmp_path: Path
) -> None:
    folder = environment(settings, "aaaaaaaaaaaa")
    link = tmp_path / "link"
    link.symlink_to(settings.home)
    release(settings, json.dumps({"environment_path": str(link / folder.relative_to(settings.home))}))
    assert gone(settings) == []
