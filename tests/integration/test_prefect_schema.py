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
