"""An environment's files are compared with what was installed: cheaply each time, by all bytes when in doubt."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from releases import make_release

from tasks.core.settings import Settings
from tasks.environment.files import touch_used
from tasks.environment.integrity import (
    NOTE,
    changed_files,
    changed_since_installed,
    doubt,
    is_doubted,
    note_files,
    settle_doubt,
    unlike_record,
)

SITE = "lib/python3.11/site-packages"
MODULE = f"{SITE}/probe/__init__.py"
FILES = {MODULE: b"x = 1\n", f"{SITE}/probe/native.so": b"\x7fELF" + bytes(100), "bin/probe": b"#!python\n"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An environment with one package of three files and its `RECORD`, and a link."""
    place = tmp_path / "environments" / "aaaaaaaaaaaa"
    rows = []
    for name, content in FILES.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        rows.append(f"{os.path.relpath(path, place / SITE)},sha256={digest},{len(content)}")
    record = place / SITE / "probe-1.0.dist-info" / "RECORD"
    record.parent.mkdir()
    record.write_text("\n".join([*rows, "probe-1.0.dist-info/RECORD,,", "probe/__pycache__/a.pyc,,"]))
    (place / "bin" / "python").symlink_to("/usr/bin/python3")
    return place


def empty(path: Path) -> None:
    path.write_bytes(b"")


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbage(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


def missing(path: Path) -> None:
    path.unlink()


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def other_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/elsewhere")


DAMAGES = [empty, half, garbage, missing, folder_instead, other_link]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damage_is_found(folder: Path, name: str, damage: Callable[[Path], None]) -> None:
    note_files(folder)
    assert changed_files(folder) == changed_files(folder, deep=True) == ()
    damage(folder / name)
    assert changed_files(folder) == (name,)


@pytest.mark.parametrize("damage", [missing, other_link])
def test_a_link_that_leads_elsewhere_is_found_in_depth(folder: Path, damage: Callable[[Path], None]) -> None:
    note_files(folder)
    damage(folder / "bin" / "python")
    assert changed_files(folder, deep=True) == ("bin/python",)


def test_a_change_that_keeps_size_and_time_is_found_in_depth(folder: Path) -> None:
    """As a disk that lost bits does it."""
    note_files(folder)
    before = (folder / MODULE).stat()
    garbage(folder / MODULE)
    os.utime(folder / MODULE, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert changed_files(folder) == ()
    assert changed_files(folder, deep=True) == (MODULE,)


def test_a_copy_is_read_once_and_then_known(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note_files(folder)
    for name in FILES:
        os.utime(folder / name, (1, 1))
    assert changed_files(folder) == ()
    read: list[Path] = []
    monkeypatch.setattr("tasks.environment.integrity._digest", read.append)
    assert changed_files(folder) == ()
    assert read == []


def test_what_python_and_slipway_write_later_is_no_change(folder: Path) -> None:
    note_files(folder)
    cache = folder / SITE / "probe" / "__pycache__"
    cache.mkdir()
    (cache / "probe.pyc").write_bytes(b"")
    touch_used(folder)
    doubt(folder, Settings(folder.parent.parent, "", "", None))
    assert changed_files(folder, deep=True) == ()


@pytest.mark.parametrize(
    "damage",
    [empty, half, garbage, missing, other_link, lambda path: path.write_text('{"schema":"slipway.files/1"}')],
)
def test_without_its_note_the_packages_records_decide(folder: Path, damage: Callable[[Path], None]) -> None:
    note_files(folder)
    damage(folder / NOTE)
    assert changed_files(folder) == ()
    assert (folder / NOTE).is_file()
    (folder / NOTE).unlink()
    garbage(folder / MODULE)
    assert changed_files(folder) == (MODULE,)
    assert not (folder / NOTE).exists()


def test_a_folder_in_the_place_of_the_note_asks_for_a_new_environment(folder: Path) -> None:
    (folder / NOTE).mkdir()
    assert changed_files(folder) == (NOTE,)


@pytest.mark.parametrize(
    "text", ["", "a", "a,sha256=a", "a,sha256=!", "../../../../../etc/passwd,sha256=AAAA,1", '"']
)
def test_a_damaged_record_says_nothing(folder: Path, text: str) -> None:
    (folder / SITE / "probe-1.0.dist-info" / "RECORD").write_text(text)
    assert set(unlike_record(folder)) <= {"probe"}


def test_a_package_with_a_damaged_file_is_named(folder: Path) -> None:
    assert unlike_record(folder) == {}
    garbage(folder / MODULE)
    assert unlike_record(folder) == {"probe": (MODULE,)}


def test_a_doubt_is_settled_once_and_takes_compiled_modules_along(folder: Path) -> None:
    cache = folder / SITE / "probe" / "__pycache__"
    cache.mkdir()
    doubt(folder, Settings(folder.parent.parent, "", "", None))
    assert is_doubted(folder)
    settle_doubt(folder)
    assert not is_doubted(folder)
    assert not cache.exists()


def test_a_doubted_environment_is_compared_by_its_next_look(folder: Path) -> None:
    """Damage that neither size nor time shows is found once an engine has failed in it, or by the nightly check."""
    settings = Settings(folder.parent.parent, "", "", None)
    release = make_release(folder / "bin" / "python", folder / MODULE)
    note_files(folder)
    before = (folder / MODULE).stat()
    garbage(folder / MODULE)
    os.utime(folder / MODULE, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert changed_since_installed(release, settings) == (MODULE,)
    assert is_doubted(folder)
    elsewhere = Settings(folder, "", "", None)
    assert changed_since_installed(release, elsewhere) == (), "it is not Slipway's"
