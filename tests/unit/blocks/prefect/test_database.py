"""Prefect's database: damaged in each way, set aside once, and nothing else touched."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from blocks.prefect.database import damage, database_file, ready_database
from tasks.core.errors import SlipwayError
from tasks.core.progress import listen
from tasks.core.settings import Settings


@pytest.fixture
def settings(slipway_home: Path) -> Settings:
    return Settings.load()


def write_database(file: Path, rows: int = 2000) -> Path:
    """One in the mode that Prefect uses, of many pages."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE runs (id INTEGER PRIMARY KEY, name TEXT UNIQUE)")
        database.executemany("INSERT INTO runs (name) VALUES (?)", [(f"run {n} " * 9,) for n in range(rows)])
        database.commit()
    return file


def rows_of(file: Path) -> int:
    with contextlib.closing(sqlite3.connect(file)) as database:
        found: int = database.execute("SELECT count(*) FROM runs").fetchone()[0]
        return found


def overwrite(file: Path, start: int, content: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(start)
        opened.write(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "garbage": lambda file: file.write_bytes(os.urandom(10_000)),
    "a text": lambda file: file.write_text("this is not a database\n" * 99),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "half of it": lambda file: os.truncate(file, file.stat().st_size // 2),
    "all but its last page": lambda file: os.truncate(file, file.stat().st_size - 4096),
    "its first page": lambda file: os.truncate(file, 4096),
    "its first 100 bytes": lambda file: os.truncate(file, 100),
    "a head of zeros": lambda file: overwrite(file, 0, bytes(4096)),
    "a page of zeros inside": lambda file: overwrite(file, 4 * 4096, bytes(4096)),
    "a page of garbage inside": lambda file: overwrite(file, 7 * 4096, os.urandom(4096)),
}


@pytest.mark.parametrize("kind", list(DAMAGES))
def test_a_damaged_database_is_set_aside_and_said(kind: str, settings: Settings) -> None:
    file = write_database(database_file(settings))
    DAMAGES[kind](file)
    content = file.read_bytes()
    said: list[str] = []
    listen(lambda _, line: said.append(line))
    ready_database(settings)
    (aside,) = list(file.parent.glob("prefect.db.damaged-*-0"))
    assert aside.read_bytes() == content
    assert not file.exists()
    (line,) = said
    assert f"{file} is damaged" in line
    assert aside.name in line
    assert rows_of(write_database(file)) == 2000, "a new one takes its place"
    ready_database(settings)
    assert len(said) == 1, "the new one is sound"


@pytest.mark.parametrize("kind", ["whole", "empty", "one byte", "none"])
def test_what_a_server_can_start_with_stays(kind: str, settings: Settings) -> None:
    file = database_file(settings)
    if kind == "whole":
        write_database(file)
    elif kind != "none":
        file.parent.mkdir(parents=True)
        file.write_bytes(b"S" if kind == "one byte" else b"")
    before = file.read_bytes() if file.exists() else None
    ready_database(settings)
    assert (file.read_bytes() if file.exists() else None) == before
    assert list(file.parent.glob("*damaged*")) == []
    assert rows_of(file if kind == "whole" else write_database(file)) == 2000


def test_a_database_that_a_server_writes_to_is_left_alone(settings: Settings) -> None:
    file = write_database(database_file(settings))
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.execute("BEGIN EXCLUSIVE")
        ready_database(settings)
        database.execute("INSERT INTO runs (name) VALUES ('the last one')")
        database.commit()
    assert rows_of(file) == 2001


def test_journals_of_a_database_that_is_gone_are_not_taken_for_the_new_ones(settings: Settings) -> None:
    file = database_file(settings)
    file.parent.mkdir(parents=True)
    file.with_name("prefect.db-wal").write_bytes(b"old")
    ready_database(settings)
    assert [found.name.partition("-0")[2] for found in file.parent.glob("*")] == ["-wal"]


def test_files_of_earlier_versions_are_closed(settings: Settings) -> None:
    file = write_database(database_file(settings))
    file.chmod(0o644)
    ready_database(settings)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_what_is_not_a_file_is_named(settings: Settings) -> None:
    file = database_file(settings)
    file.mkdir(parents=True)
    with pytest.raises(SlipwayError, match=f"{file} is not a file"):
        ready_database(settings)


def test_two_at_once_set_one_aside(settings: Settings) -> None:
    """The second looks again when it has the lock."""
    file = write_database(database_file(settings))
    file.write_bytes(b"garbage" * 999)
    ready_database(settings)
    write_database(file)
    ready_database(settings)
    assert damage(file) is None
    assert len(list(file.parent.glob("*damaged*"))) == 1
