"""A home that this user may not write to is one line before anything is done, and nothing is changed in it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from random_model import write_random_model
from small_disk import small_disk_at

from blocks.host.home_access import check_home
from blocks.services.early_checks import check_model
from tasks.core.errors import ModelError, WrongUseError
from tasks.core.settings import Settings
from tasks.core.spec import parse_spec

FOLDERS = (
    ".",
    "locks",
    "environments",
    "models",
    "candidates",
    "services",
    "services/chat",
    "leases",
    "records",
)
NOBODY = 65534


def refused() -> WrongUseError:
    with pytest.raises(WrongUseError) as caught:
        check_home(Settings.load(), "chat")
    assert "SLIPWAY_HOME" in (caught.value.fix or "")
    return caught.value


def test_a_home_that_may_be_written_to_is_left_as_it_was(slipway_home: Path) -> None:
    check_home(Settings.load(), "chat")
    assert not slipway_home.exists()


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_the_home_that_is_a_file(name: str, slipway_home: Path) -> None:
    path = slipway_home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():  # `.` is the home, which is made for it above
        path.rmdir()
    path.touch()
    assert refused().what == f"{path} is not a folder"


@pytest.fixture
def nobodys(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that everybody reaches, unlike pytest's own. Root becomes nobody by `os.seteuid` until the test ends."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setenv("SLIPWAY_HOME", f"{folder}/home")
        yield Path(folder)
        os.seteuid(0)


@pytest.mark.another_user
@pytest.mark.parametrize("name", [*FOLDERS, "leases/service-chat"])
def test_a_home_that_another_user_made(name: str, nobodys: Path) -> None:
    """All of it, or a folder or lock in it that root left there."""
    home = nobodys / "home"
    path = home / name
    if name == "leases/service-chat":
        path.parent.mkdir(parents=True)
        path.touch(mode=0o644)
    else:
        path.mkdir(parents=True, exist_ok=True)
    for folder in (home, *home.rglob("*")):
        os.chown(folder, NOBODY, NOBODY)
    os.chown(path, 0, 0)
    os.seteuid(NOBODY)
    assert refused().what == f"user {NOBODY} cannot write to {path}, which belongs to user 0"


def test_a_disk_that_is_mounted_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk_at(tmp_path / "disk", "256k") as place:
        monkeypatch.setenv("SLIPWAY_HOME", str(place / "home"))
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        assert refused().what == f"{place} is on a disk that is mounted read-only"


def test_a_model_that_may_not_be_read(nobodys: Path) -> None:
    model = nobodys / "model"
    spec = parse_spec({"name": "chat", "model": f"file:{model}"})
    model.mkdir(mode=0o755)
    with pytest.raises(ModelError, match="there are no files in"):
        check_model(spec, Settings.load())
    write_random_model(model)
    (model / "model.safetensors").chmod(0o600)
    check_model(spec, Settings.load())
    os.seteuid(NOBODY)
    with pytest.raises(ModelError, match=r"model\.safetensors is not readable"):
        check_model(spec, Settings.load())
