"""Who may look into `SLIPWAY_HOME`."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tasks.core.errors import WrongUseError
from tasks.core.home import close_home, make_home, make_private_folder
from tasks.core.settings import home_folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def folder(path: Path, permissions: int, *entries: str) -> Path:
    for entry in ("", *entries):
        (path / entry).mkdir(parents=True)
        (path / entry).chmod(0o755)
    path.chmod(permissions)
    return path


def test_a_new_home_is_its_owners_alone(tmp_path: Path) -> None:
    assert not make_home(tmp_path / "a" / "home")
    assert mode(tmp_path / "a" / "home") == 0o700


@pytest.mark.parametrize(
    ("permissions", "entries", "after"),
    [
        (0o755, (), 0o700),
        (0o755, ("prefect", "services", "logs"), 0o700),
        (0o777, ("models",), 0o700),
        (0o700, ("prefect",), 0o700),
        (0o1777, ("prefect",), 0o1777),
        (0o2775, ("prefect",), 0o2775),
        (0o755, ("prefect", "allowed.toml", "local.json.12.part"), 0o700),
        (0o755, ("prefect", "lib"), 0o755),
    ],
    ids=[
        "empty",
        "used",
        "open to all",
        "closed",
        "like /tmp",
        "a group's",
        "with a list and a write left behind",
        "with other things in it",
    ],
)
def test_an_open_home_is_closed_if_it_is_slipways_alone(
    tmp_path: Path, permissions: int, entries: tuple[str, ...], after: int
) -> None:
    home = folder(tmp_path / "home", permissions, *entries)
    assert close_home(home) is (after != permissions)
    assert mode(home) == after
    assert not close_home(home), "it is said once"


def test_what_is_confidential_is_closed_in_every_home(tmp_path: Path) -> None:
    home = folder(tmp_path / "home", 0o1777, "prefect", "logs", "models")
    close_home(home)
    assert [mode(home / name) for name in ("prefect", "logs", "models")] == [0o700, 0o700, 0o755]


def test_no_home_is_made_by_closing_it(tmp_path: Path) -> None:
    assert not close_home(tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_a_private_folder_that_was_open_is_closed(tmp_path: Path) -> None:
    made, found = tmp_path / "made", folder(tmp_path / "found", 0o755)
    for each in (made, found):
        make_private_folder(each)
        assert mode(each) == 0o700


def test_a_home_of_an_unknown_user_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIPWAY_HOME", "~no-such-user/x")
    with pytest.raises(WrongUseError, match="'~no-such-user/x', and that user has no home folder here"):
        home_folder()


def test_a_home_has_one_name_however_it_is_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "home")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.chdir(tmp_path / "home")
    for spelled in (tmp_path / "home", tmp_path / "link", tmp_path / "link" / ".." / "home", Path()):
        monkeypatch.setenv("SLIPWAY_HOME", str(spelled))
        assert home_folder() == tmp_path / "home"
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path / "loop"))
    assert home_folder() == tmp_path / "loop", "it is for those who use it to fail"
