"""The kept schema of Prefect's database is what the migrations of the installed Prefect make."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from pathlib import Path

from blocks.prefect.schema import FILE, lay_out


def test_the_schema_is_that_of_the_installed_prefect(tmp_path: Path) -> None:
    code = "from blocks.prefect.schema import migrated; print(migrated(), end='')"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    again = "Prefect was upgraded: python -m blocks.prefect.schema"
    assert _parts(made.stdout) == _parts(FILE.read_text()), again
    lay_out(tmp_path / "prefect.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "prefect.db")) as opened:
        assert opened.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
        assert opened.execute("SELECT count(*) FROM flow_run").fetchone() == (0,)


def _parts(schema: str) -> list[str]:
    """Migrations write the constraints of a table in any order."""
    return sorted(part.strip(" );") for line in schema.splitlines() for part in line.split(","))


def test_a_schema_of_another_prefect_is_left_to_its_migrations(tmp_path: Path) -> None:
    other = tmp_path / "schema.sql"
    other.write_text(f"-- prefect 0.1\n{FILE.read_text().partition(chr(10))[2]}")
    lay_out(tmp_path / "prefect.db", other)
    assert not (tmp_path / "prefect.db").exists()


def test_a_schema_that_cannot_be_written_is_left_to_the_migrations(tmp_path: Path) -> None:
    """As on a full disk: SQLite's fault is no `OSError`."""
    broken = tmp_path / "schema.sql"
    broken.write_text(
        f"{FILE.read_text().partition(chr(10))[0]}\nCREATE TABLE one (a);\nCREATE TABLE one (a);\n"
    )
    lay_out(tmp_path / "prefect.db", broken)
    assert [path.name for path in tmp_path.iterdir()] == ["schema.sql"]


def test_commands_that_begin_at_once_in_a_new_home_make_one_database(slipway_home: Path) -> None:
    code = """if True:
        import sys
        from blocks.prefect.server import ready_own_database
        from tasks.core.settings import Settings
        print(flush=True)
        sys.stdin.readline()
        ready_own_database(Settings.load())
    """
    pipe = subprocess.PIPE
    commands = [
        subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        for _ in range(4)
    ]
    for command in commands:
        assert command.stdout is not None
        assert command.stdout.readline() == "\n"
    for command in commands:
        assert command.stdin is not None
        command.stdin.write("\n")
        command.stdin.flush()
    assert [command.communicate()[1] for command in commands] == [""] * 4
    assert sorted(path.name for path in (slipway_home / "prefect").glob("prefect.db*")) == ["prefect.db"]
